//! The readers of requests on arbitrary text.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/server/tests/common/exercise.rs"]
mod exercise;

fuzz_target!(|text: &str| exercise::request(text));
