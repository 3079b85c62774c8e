//! Token ids to text, as they arrive.

use crate::Tokenizer;

/// Turns a stream of tokens into a stream of text.
///
/// Tokens routinely end inside a UTF-8 sequence; at most three bytes are held back until the
/// sequence is complete. Each maximal part of a sequence that cannot be completed becomes U+FFFD,
/// so that all deltas together are the lossy decoding of all bytes together.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    stream: Utf8Stream,
}

impl Detokenizer {
    /// A detokenizer at the beginning of a text.
    pub fn new(tokenizer: &Tokenizer) -> Detokenizer {
        Detokenizer {
            tokenizer: tokenizer.clone(),
            stream: Utf8Stream::default(),
        }
    }

    /// The text that token `id` completes, possibly empty. Added tokens give their literal text;
    /// an id outside the vocabulary gives nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.stream.push(self.tokenizer.token_bytes(id))
    }

    /// The end of the text: U+FFFD if an unfinished sequence was held back, else nothing.
    pub fn finish(self) -> String {
        self.stream.finish()
    }
}

/// Turns a stream of bytes into a stream of text.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a sequence: at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// The text that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut at = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            at += chunk.valid().len();
            let invalid = chunk.invalid();
            if at + invalid.len() == self.held.len() && is_beginning(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            at += invalid.len();
        }
        self.held.drain(..at);
        text
    }

    /// The end of the text.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

/// Whether more bytes could make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
