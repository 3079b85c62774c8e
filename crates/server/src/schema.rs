//! Content that must follow a JSON schema.

use std::sync::Arc;

use ds4_engine::TokenSet;
use ds4_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::generation::{Failure, FailureKind};

/// In front of the text of tokens that are no text: the grammar never admits them.
const NO_TEXT: u8 = 0xff;

/// Compiles schemas for one vocabulary.
pub struct Schemas {
    factory: ParserFactory,
}

impl Schemas {
    /// For this vocabulary.
    ///
    /// # Errors
    /// What the vocabulary lacks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Schemas, String> {
        let mut words: Vec<Vec<u8>> = (0..tokenizer.n_vocab() as u32)
            .map(|token| tokenizer.token_bytes(token).to_vec())
            .collect();
        for word in &mut words {
            // No character begins with this byte; alone it would look like a marker.
            if word.first() == Some(&NO_TEXT) {
                word.clear();
            }
        }
        for (token, text) in tokenizer.added_tokens() {
            let mut word = vec![NO_TEXT];
            word.extend_from_slice(text.as_bytes());
            words[token as usize] = word;
        }
        let info = TokRxInfo::new(words.len() as u32, tokenizer.protocol().eos);
        let trie = TokTrie::from(&info, &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Schemas { factory })
    }

    /// A reader of content that must follow a schema.
    ///
    /// # Errors
    /// A schema that is not one, or that asks for what cannot be enforced.
    pub fn compile(&self, schema: &Value) -> Result<SchemaReader, Failure> {
        let grammar = TopLevelGrammar::from_json_schema(schema.clone());
        let parser = self.factory.create_parser(grammar);
        let parser = parser.map_err(|e| Failure {
            kind: FailureKind::Unsupported,
            message: format!("the JSON schema cannot be enforced: {e:#}"),
            param: Some("schema".to_owned()),
        })?;
        Ok(SchemaReader {
            matcher: Matcher::new(Ok(parser)),
            begun: false,
        })
    }
}

/// Says which tokens keep the content on its schema.
pub struct SchemaReader {
    matcher: Matcher,
    begun: bool,
}

impl SchemaReader {
    /// Whether content was read.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Tokens that may come next, the end-of-sentence token where the content may end. `None`
    /// when the reader has lost its way, which leaves the content free.
    pub fn allowed(&mut self) -> Option<TokenSet> {
        let mask = self.matcher.compute_mask_or_eos().ok()?;
        Some(TokenSet::from_words(mask.as_slice().to_vec()))
    }

    /// Reads a token of the content.
    pub fn push(&mut self, token: u32) {
        self.begun = true;
        // A token that was not allowed ends the guidance; `allowed` says so.
        let _ = self.matcher.consume_token(token);
    }
}
