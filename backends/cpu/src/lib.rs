//! The CPU backend.
//!
//! [`CpuBackend`] implements [`ds4_model::Backend`]: ops run when they are called, on a [`Pool`] of
//! threads, with the instructions of a [`SimdPath`]. Weights are used where they lie in the mapped
//! file; buffers are memory of the system that is taken when it is touched.

// Rows cross the `Backend` trait, and blocks come from files, in little-endian order.
#[cfg(target_endian = "big")]
compile_error!("this backend runs on little-endian machines only");

mod backend;
mod buffer;
mod encode;
mod kernels;
mod memory;
mod ops;
mod path;
pub mod pool;
mod products;
mod simd;
mod weight;

pub use backend::{CpuBackend, CpuError, CpuOptions, MAX_THREADS};
pub use buffer::Buffer;
pub use encode::encode_row;
pub use path::Path as SimdPath;
pub use pool::Pool;
pub use weight::Weight;
