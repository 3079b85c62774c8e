//! Vocabularies of both kinds from arbitrary bytes. An accepted one encodes every byte.
#![no_main]

use ds4_text::Tokenizer;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/text/tests/common/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(tokenizer) = Tokenizer::from_tokenizer_json(&text) {
        exercise::tokenizer(&tokenizer, bytes);
    }
    // One token or merge a line: its type, then its text.
    let (mut tokens, mut types, mut merges) = (Vec::new(), Vec::new(), Vec::new());
    for line in bytes.split(|&b| b == b'\n') {
        match line.split_first() {
            Some((b'm', merge)) => merges.push(merge),
            Some((&kind, token)) => {
                types.push(i32::from(kind) - i32::from(b'0'));
                tokens.push(token);
            }
            None => {}
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf_parts("gpt2", "joyai-llm", &tokens, &types, &merges)
    {
        exercise::tokenizer(&tokenizer, bytes);
    }
});
