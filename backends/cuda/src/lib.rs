//! The backend for NVIDIA devices.
//!
//! [`CudaBackend`] implements [`ds4_model::Backend`]. The driver and the compiler are loaded when a
//! backend is made, so that the crate builds and its callers run on machines without either. Every
//! op has a plain kernel for all geometries and weight types; the kernels for the published geometry
//! take their place where they can, and are tested against them.

// Rows cross the `Backend` trait, and blocks come from files, in little-endian order.
#[cfg(target_endian = "big")]
compile_error!("this backend runs on little-endian machines only");

mod backend;
mod buffer;
mod decode;
mod driver;
mod error;
pub mod kernels;
mod landing;
mod load;
mod ops;
mod plain;
mod prefill;
mod steps;
mod times;
mod transfer;
mod wanted;
mod weight;

pub use backend::{CudaBackend, CudaError, CudaOptions, Fast};
pub use buffer::{Buffer, Rows};
pub use driver::{DeviceError, DeviceFacts, DriverError};
pub use weight::{Layout, Weight};
