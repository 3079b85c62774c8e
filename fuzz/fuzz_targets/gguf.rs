//! The GGUF reader on arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/formats/tests/gguf/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    let _ = exercise::exercise(bytes);
});
