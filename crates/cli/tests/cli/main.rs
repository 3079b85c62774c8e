//! The built program, run as a user runs it.

mod ask;
mod bad_input;
mod bench;
#[cfg(unix)]
mod chat;
mod definitions;
mod documents;
mod inspect;
mod kv;
mod logits;
mod program;
mod text;

use ds4_conformance::speaking_model;
