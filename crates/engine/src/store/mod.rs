//! store
mod rows;
pub use rows::*;
