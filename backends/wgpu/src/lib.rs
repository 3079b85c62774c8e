//! The wgpu backend: Metal on macOS, Vulkan on Linux and Windows.
//!
//! [`WgpuBackend`] implements [`ds4_model::Backend`] with WGSL kernels, `kernels/<op>.wgsl`, under
//! the names of the ops. [`Gpu`] is an open device; it compiles each kernel once for each
//! [`Specialisation`]. Ops are recorded as a list of dispatches and encoded as one compute pass.

mod adapter;
mod attend;
mod backend;
mod bound;
mod few;
mod few_experts;
mod joined;
mod kernels;
mod lack;
mod many;
mod memory;
mod ops;
mod own;
mod played;
mod random;
mod record;
mod self_check;
mod streams;
mod sublayers;
mod weight;

pub use adapter::{Capabilities, Gpu, WgpuError, WgpuOptions};
pub use backend::{Rows, WgpuBackend};
pub use kernels::{Constant, Specialisation, kernel_names};
pub use lack::Lack;
pub use memory::Buffer;
pub use weight::{Stored, Weight};
