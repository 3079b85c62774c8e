//! The tokens that calls are written with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ds4_engine::TokenSet;
use ds4_text::Tokenizer;
use llguidance::toktrie::{Recognizer, SimpleVob, TokRxInfo, TokTrie};

use super::closing::Closing;

/// A vocabulary as a reader of bytes sees it. Made once for a tokenizer.
pub struct CallVocabulary {
    /// Every token that may stand in a call.
    all: TokTrie,
    /// Those of them that may end a JSON string or begin something in it.
    delicate: TokTrie,
    /// The others.
    plain: SimpleVob,
    /// What may follow in the text of a string value, which no request changes.
    in_text: Mutex<HashMap<Closing, Arc<TokenSet>>>,
}

impl CallVocabulary {
    /// Of a tokenizer. Tokens that end a reply or that no reply contains are left out.
    pub fn new(tokenizer: &Tokenizer) -> CallVocabulary {
        let n_vocab = tokenizer.n_vocab();
        let mut words: Vec<Vec<u8>> = (0..n_vocab as u32)
            .map(|token| tokenizer.token_bytes(token).to_vec())
            .collect();
        let ends = crate::reply::stop_tokens(tokenizer);
        for token in ends.into_iter().chain(tokenizer.never_sampled()) {
            words[token as usize].clear();
        }
        let info = TokRxInfo::new(n_vocab as u32, tokenizer.protocol().eos);
        let all = TokTrie::from(&info, &words);
        let mut plain = all.alloc_token_set();
        for (token, word) in words.iter_mut().enumerate() {
            let is_delicate = |byte: &u8| matches!(byte, b'"' | b'\\' | b'<' | ..b' ');
            if !word.is_empty() && !word.iter().any(is_delicate) {
                plain.allow_token(token as u32);
                word.clear();
            }
        }
        CallVocabulary {
            delicate: TokTrie::from(&info, &words),
            all,
            plain,
            in_text: Mutex::default(),
        }
    }

    /// The tokens whose bytes can all be read from a state on.
    pub(super) fn readable<S: Copy>(
        &self,
        state: S,
        read: impl Fn(S, u8) -> Option<S>,
    ) -> Arc<TokenSet> {
        self.walk(&self.all, self.all.alloc_token_set(), state, read)
    }

    /// The same where every token without `"`, `\`, `<` and control characters can be read.
    pub(super) fn readable_in_string<S: Copy>(
        &self,
        state: S,
        read: impl Fn(S, u8) -> Option<S>,
    ) -> Arc<TokenSet> {
        self.walk(&self.delicate, self.plain.clone(), state, read)
    }

    /// The same in the text of a string value.
    pub(super) fn readable_in_text<S: Copy>(
        &self,
        closing: Closing,
        state: S,
        read: impl Fn(S, u8) -> Option<S>,
    ) -> Arc<TokenSet> {
        let mut known = self.in_text.lock().unwrap_or_else(PoisonError::into_inner);
        let set = known
            .entry(closing)
            .or_insert_with(|| self.readable(state, read));
        Arc::clone(set)
    }

    fn walk<S: Copy, R: Fn(S, u8) -> Option<S>>(
        &self,
        trie: &TokTrie,
        mut set: SimpleVob,
        state: S,
        read: R,
    ) -> Arc<TokenSet> {
        let states = vec![state];
        trie.add_bias(&mut Reader { states, read }, &mut set, &[]);
        Arc::new(TokenSet::from_words(set.as_slice().to_vec()))
    }
}

/// Reads along the branches of a trie.
struct Reader<S, R> {
    /// The states behind the bytes of the branch.
    states: Vec<S>,
    read: R,
}

impl<S: Copy, R: Fn(S, u8) -> Option<S>> Recognizer for Reader<S, R> {
    fn pop_bytes(&mut self, num: usize) {
        self.states.truncate(self.states.len() - num);
    }

    fn collapse(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    fn trie_finished(&mut self) {
        self.states.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let next = self
            .states
            .last()
            .and_then(|state| (self.read)(*state, byte));
        self.states.extend(next);
        next.is_some()
    }
}
