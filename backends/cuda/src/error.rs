//! Failures of the driver as failures of a backend.

use ds4_model::BackendError;

use crate::driver::DriverError;
use crate::kernels::KernelError;

/// What an allocation of `n_bytes` for `what` failed with.
pub(crate) fn out_of_memory(error: DriverError, what: String, n_bytes: usize) -> BackendError {
    if error.out_of_memory {
        BackendError::OutOfMemory { what, n_bytes }
    } else {
        device(error)
    }
}

pub(crate) fn device(error: DriverError) -> BackendError {
    match error.lost {
        true => BackendError::Lost(error.to_string()),
        false => BackendError::Device(error.to_string()),
    }
}

pub(crate) fn kernel(error: KernelError) -> BackendError {
    match error {
        KernelError::Driver(error) => device(error),
        error => BackendError::NoCode(error.to_string()),
    }
}
