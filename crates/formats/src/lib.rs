//! Bytes and numbers: GGUF and safetensors files, importance matrices, quantised blocks, small
//! floats.
//!
//! This crate knows file layouts and number formats, and no model. [`gguf::Gguf::open`] maps a file
//! and checks its whole table before anything is used; [`Tensor`] is one named array of it;
//! [`quant`] turns its blocks into numbers and back; [`safetensors`] reads checkpoints;
//! [`imatrix`] has the importances of columns; [`small_float`] has the 4-, 8- and 16-bit floats.
//! `docs/gguf.md` has the byte tables.

mod bytes;
mod ggml_type;
pub mod gguf;
pub mod imatrix;
#[cfg(unix)]
mod lost;
pub mod quant;
pub mod safetensors;
pub mod small_float;
mod tensor;

pub use bytes::Bytes;
pub use ggml_type::{ActivationKind, GgmlType, ShapeError};
#[cfg(unix)]
pub use lost::name_lost_pages;
pub use tensor::{Origin, Tensor};
