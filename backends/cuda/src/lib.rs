//! The CUDA backend.
#![allow(dead_code)]
mod driver;
pub mod kernels;
pub use driver::{DeviceError, DeviceFacts, DriverError};
