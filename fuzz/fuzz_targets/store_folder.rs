//! A store's folder after whatever was done to its files.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the tests of the gate use the rest")]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/engine/tests/store/folder.rs"]
mod folder;
#[path = "../../crates/engine/tests/store/synthetic.rs"]
mod synthetic;

fuzz_target!(|deeds: &[u8]| folder::exercise(deeds));
