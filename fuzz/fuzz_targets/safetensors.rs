//! The reader of checkpoints on arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/formats/tests/safetensors/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let _ = exercise::open(dir.path(), bytes);
});
