//! Compiling arbitrary schemas, within the time of a fuzzer's case.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/server/tests/common/exercise.rs"]
mod exercise;

fuzz_target!(|text: &str| exercise::schema(text));
