//! What the tests here share: a backend, if this machine has a device.

use ds4_cuda::{CudaBackend, CudaOptions};
use ds4_model::Geometry;

/// Compiled kernels are kept between the tests.
fn options() -> CudaOptions {
    CudaOptions {
        cache: Some(std::env::temp_dir().join("ds4-cuda-tests")),
        ..CudaOptions::default()
    }
}

pub(crate) fn make(geometry: &Geometry) -> CudaBackend {
    CudaBackend::new(geometry, options()).expect("a device")
}

/// Whether there is a device; says what it is, or why the test is skipped.
pub(crate) fn has_device() -> bool {
    match CudaBackend::new(&Geometry::flash(), options()) {
        Ok(backend) => {
            let facts = backend.device();
            println!("{}, sm_{}{}", facts.name, facts.major, facts.minor);
            true
        }
        Err(error) => {
            ds4_conformance::golden::skipped(&error.to_string());
            false
        }
    }
}
