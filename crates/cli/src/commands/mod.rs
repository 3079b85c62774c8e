//! One module for each thing the program does.

pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod definitions;
pub(crate) mod eval;
pub(crate) mod imatrix;
pub(crate) mod inspect;
pub(crate) mod kv;
pub(crate) mod logits;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod text;
pub(crate) mod verify;
