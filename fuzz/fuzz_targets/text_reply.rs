//! The reply parser on arbitrary text.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/text/tests/common/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| exercise::reply(bytes));
