//! What computes in tests with a real model.

use ds4_engine::BackendKind;

/// The processor, or what `DS4_TEST_BACKEND` names.
pub(crate) fn test_backend() -> BackendKind {
    match std::env::var("DS4_TEST_BACKEND").as_deref() {
        Err(_) | Ok("cpu") => BackendKind::Cpu,
        Ok("cuda") => BackendKind::Cuda,
        Ok("wgpu") => BackendKind::Wgpu,
        Ok(other) => panic!("DS4_TEST_BACKEND={other}: expected cpu, cuda or wgpu"),
    }
}
