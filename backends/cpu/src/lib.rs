//! CPU backend.

mod kernels;
mod memory;
mod path;
pub mod pool;

pub use path::Path;
pub use pool::Pool;
