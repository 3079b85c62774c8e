//! One module for each thing the program does.

pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod definitions;
pub(crate) mod inspect;
pub(crate) mod kv;
pub(crate) mod logits;
pub(crate) mod text;
