//! The tokenizer on arbitrary text.
#![no_main]

use std::sync::LazyLock;

use ds4_text::Tokenizer;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/text/tests/common/exercise.rs"]
mod exercise;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let document = include_str!("../../testdata/text/small_tokenizer.json");
    Tokenizer::from_tokenizer_json(document).expect("the small vocabulary loads")
});

fuzz_target!(|bytes: &[u8]| exercise::tokenizer(&TOKENIZER, bytes));
