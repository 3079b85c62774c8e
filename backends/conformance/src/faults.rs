//! Making a device fail.

use ds4_model::session::StepShape;
use ds4_model::{
    Backend, BackendError, ElementType, Pass, RopeFrequencies, RowsImage, SegmentPlace, Shape,
    StepKey, Visibility,
};

/// Has a device read a row that is far outside its memory, which on a GPU ends everything of this
/// process on it, and returns what it said. A backend that looks where it reads panics.
pub fn lose_device<B: Backend>(b: &mut B) -> BackendError {
    let geometry = b.geometry().clone();
    let mut image = RowsImage::with_capacity(&geometry, 1, b.limits().host_angles);
    let place = SegmentPlace {
        slot: 0,
        base: 0,
        first_position: 0,
        visibility: Visibility::Causal,
    };
    image.push_segment(&RopeFrequencies::new(&geometry), place, &[1]);
    image.source[0] = u32::MAX / 2;
    let mut rows = b.alloc_rows(1).expect("few rows");
    let mut buffer = || {
        let shape = Shape::rows(1, geometry.n_embd);
        b.alloc(ElementType::F32, shape).expect("a small buffer")
    };
    let (x, mut out) = (buffer(), buffer());
    b.begin(&StepKey {
        session: u64::MAX,
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
    });
    b.write_rows(&mut rows, &image);
    b.select_rows(&rows, &x, &mut out);
    let failed = b.launch().and_then(|()| b.wait());
    failed.expect_err("a row that is nowhere cannot be read")
}
