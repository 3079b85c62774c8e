//! A device that fails takes its own work with it, and nothing else. In a program of its own, because
//! nothing can use the device afterwards.

mod device;

use ds4_model::session::StepShape;
use ds4_model::{
    Backend, BackendError, ElementType, Geometry, Pass, Place, RopeFrequencies, RowsImage, SegmentPlace, Shape,
    StepKey, Visibility,
};

use device::{has_device, make};

fn assert_lost(error: BackendError) {
    println!("{error}");
    assert!(matches!(error, BackendError::Lost(_)), "{error}");
}

#[test]
fn a_lost_device_is_an_error_of_every_later_call() {
    if !has_device() {
        return;
    }
    let geometry = Geometry::flash();
    let mut b = make(&geometry);
    let mut image = RowsImage::with_capacity(&geometry, 1, true);
    let place = SegmentPlace {
        slot: 0,
        base: 0,
        first_position: 0,
        visibility: Visibility::Causal,
    };
    image.push_segment(&RopeFrequencies::new(&geometry), place, &[1]);
    // A row that is nowhere: the kernel reads memory that is not there.
    image.source[0] = u32::MAX / 2;
    let mut rows = b.alloc_rows(1).expect("few rows");
    let width = geometry.n_embd;
    let x = b
        .alloc(ElementType::F32, Shape::rows(1, width))
        .expect("a small buffer");
    let mut out = b
        .alloc(ElementType::F32, Shape::rows(1, width))
        .expect("a small buffer");
    let key = StepKey {
        session: 0,
        pass: Pass::Backbone,
        shape: StepShape {
            n_rows: 1,
            n_outputs: 1,
            selects: false,
            max_len: 1024,
            score_rows: 1,
            rounded: false,
            chooses: false,
        },
    };
    b.begin(&key);
    b.write_rows(&mut rows, &image);
    b.select_rows(&rows, &x, &mut out);
    let failed = b.launch().and_then(|()| b.wait());
    assert_lost(failed.expect_err("an illegal address"));
    let mut bytes = vec![0; width * 4];
    let at = Place { slot: 0, row: 0 };
    assert_lost(b.read(&out, at, &mut bytes).expect_err("lost"));
    assert_lost(b.write(&mut out, at, &bytes).expect_err("lost"));
    let alloc = b.alloc(ElementType::F32, Shape::rows(1, width));
    assert_lost(alloc.expect_err("lost"));
    b.begin(&key);
    b.write_rows(&mut rows, &image);
    b.select_rows(&rows, &x, &mut out);
    assert_lost(b.launch().and_then(|()| b.wait()).expect_err("lost"));
}
