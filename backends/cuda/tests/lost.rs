//! A device that fails takes its own work with it, and nothing else. In a program of its own, because
//! nothing can use the device afterwards.

mod device;

use ds4_conformance::faults::lose_device;
use ds4_model::{Backend, BackendError, ElementType, Geometry, Place, Shape};

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
    let shape = Shape::rows(1, geometry.n_embd);
    let mut out = b.alloc(ElementType::F32, shape).expect("a small buffer");
    // The device of a process is one, whoever of it loses it.
    assert_lost(lose_device(&mut make(&geometry)));
    let mut bytes = vec![0; geometry.n_embd * 4];
    let at = Place { slot: 0, row: 0 };
    assert_lost(b.read(&out, at, &mut bytes).expect_err("lost"));
    assert_lost(b.write(&mut out, at, &bytes).expect_err("lost"));
    assert_lost(b.alloc(ElementType::F32, shape).expect_err("lost"));
    assert_lost(b.launch().and_then(|()| b.wait()).expect_err("lost"));
}
