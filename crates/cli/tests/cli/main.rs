//! The built program, run as a user runs it.

mod ask;
mod bad_input;
mod bench;
#[cfg(unix)]
mod chat;
mod checkpoint;
mod definitions;
mod documents;
mod eval;
mod files;
#[cfg(any(feature = "wgpu", target_os = "macos", windows))]
mod gpu;
mod imatrix;
mod inspect;
mod kv;
mod logits;
mod packaging;
mod program;
#[cfg(feature = "pull")]
mod pull;
mod quantize;
mod text;
mod verify;

use ds4_conformance::speaking_model;
