//! The reader of blocks and points on arbitrary bytes: it decodes what was
//! written, refuses the rest, and takes no more memory than the layout allows.
#![no_main]

use ds4_engine::store::{SlotLayout, decode_file};
use ds4_engine::{CacheRounding, Geometry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let layout = SlotLayout::new(&Geometry::flash(), CacheRounding::Official).with_block_tokens(16);
    let _ = decode_file(bytes, &layout);
});
