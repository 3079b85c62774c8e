//! Text to token ids.

use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, Input, MatchKind};

use crate::bpe::{Merges, Scratch};
use crate::prompt::{MarkerText, Prompt};
use crate::vocabulary::{self, Entry, LoadError, ProtocolTokens, Vocabulary};
use crate::{splitter, tokenizer_json};

/// How the texts of added tokens begin that nothing is assigned to.
const UNUSED_PREFIXES: [&str; 2] = ["<｜place▁holder▁no▁", "<|place_holder_mm_span_"];
/// Added tokens for images, tables and positions in images.
const UNUSED: [&str; 19] = [
    "<｜end_of_query｜>",
    "<｜rl_image_pad｜>",
    "<｜rl_image_start｜>",
    "<｜image｜>",
    "<｜image2｜>",
    "<｜/table>｜",
    "<｜table｜>",
    "<｜/td｜>",
    "<｜td｜>",
    "<｜/tr｜>",
    "<｜tr｜>",
    "<｜/polygon｜>",
    "<｜polygon｜>",
    "<｜/point｜>",
    "<｜point｜>",
    "<｜/box｜>",
    "<｜box｜>",
    "<｜/ref｜>",
    "<｜ref｜>",
];

/// Byte-level BPE with the splitter of DeepSeek V4 and a vocabulary read from a model's files.
/// Cloning is cheap; clones share the vocabulary.
///
/// Text is encoded in three steps. Added tokens are cut out as whole strings, leftmost-longest,
/// in the passes that `tokenizer.json` gives them (those not *normalized* first); what is left is
/// split into pieces; the bytes of each piece are merged.
///
/// A GGUF file does not say which added tokens are normalized, so its added tokens are matched in
/// one pass. That is the same as long as no marker of the second pass, found further left,
/// reaches into one of the first; in the published vocabulary no such pair exists.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    vocabulary: Vocabulary,
    merges: Merges,
    passes: Vec<Pass>,
    /// Ids that [`MarkerText::Defuse`] keeps out of client text, ascending.
    defused: Vec<u32>,
}

/// Added tokens that are cut out together.
struct Pass {
    matcher: AhoCorasick,
    /// The token of each pattern.
    ids: Vec<u32>,
}

/// A token id outside the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token id {id} at index {index}: this vocabulary has {n_vocab} tokens, numbered from 0")]
pub struct UnknownToken {
    /// The id.
    pub id: u32,
    /// Where it stands in the list.
    pub index: usize,
    /// Size of the vocabulary.
    pub n_vocab: usize,
}

impl Tokenizer {
    /// Reads the tokenizer metadata of a GGUF file: the values of `tokenizer.ggml.model`, `pre`,
    /// `tokens`, `token_type` and `merges`.
    ///
    /// # Errors
    /// Another model or pre-tokenizer, arrays that contradict each other, or a vocabulary without
    /// the markers of the chat protocol.
    pub fn from_gguf_parts(
        model: &str,
        pre: &str,
        tokens: impl IntoIterator<Item = impl AsRef<[u8]>>,
        token_types: &[i32],
        merges: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Tokenizer, LoadError> {
        let (entries, merges) = vocabulary::from_gguf(model, pre, tokens, token_types, merges)?;
        Tokenizer::new(&entries, &merges)
    }

    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// A document that is damaged or asks for another algorithm, or a vocabulary without the
    /// markers of the chat protocol.
    pub fn from_tokenizer_json(text: &str) -> Result<Tokenizer, LoadError> {
        let (entries, merges) = tokenizer_json::read(text)?;
        Tokenizer::new(&entries, &merges)
    }

    fn new(entries: &[Entry], merges: &[String]) -> Result<Tokenizer, LoadError> {
        let (vocabulary, merges) = Vocabulary::new(entries, merges)?;
        let passes = vocabulary
            .added
            .iter()
            .map(|tokens| {
                let matcher = AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(tokens.iter().map(|(_, text)| text))?;
                let ids = tokens.iter().map(|&(id, _)| id).collect();
                Ok(Pass { matcher, ids })
            })
            .collect::<Result<_, LoadError>>()?;
        let mut defused: Vec<u32> = vocabulary.protocol.structural().collect();
        defused.sort_unstable();
        Ok(Tokenizer {
            inner: Arc::new(Inner {
                vocabulary,
                merges,
                passes,
                defused,
            }),
        })
    }

    /// Number of tokens; ids run from 0 to one less.
    pub fn n_vocab(&self) -> usize {
        self.inner.vocabulary.n_vocab()
    }

    /// The ids of the chat protocol's markers.
    pub fn protocol(&self) -> &ProtocolTokens {
        &self.inner.vocabulary.protocol
    }

    /// The added tokens, which are matched as whole strings: id and text, in no given order.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let passes = self.inner.vocabulary.added.iter().flatten();
        passes.map(|(id, text)| (*id, text.as_str()))
    }

    /// The id of the added token with this exact text.
    pub fn added_token(&self, text: &str) -> Option<u32> {
        self.added_tokens()
            .find_map(|(id, t)| (t == text).then_some(id))
    }

    /// Tokens that no reply contains, so that a sampler may leave them out: BOS, pad, the role
    /// markers, and the places that the vocabulary keeps free or has for other media. Ascending.
    pub fn never_sampled(&self) -> Vec<u32> {
        let p = self.protocol();
        let roles = [
            Some(p.bos),
            Some(p.user),
            Some(p.assistant),
            p.pad,
            p.latest_reminder,
        ];
        let unused = self.added_tokens().filter(|(_, text)| {
            let free = UNUSED_PREFIXES
                .iter()
                .any(|prefix| text.starts_with(prefix));
            free || UNUSED.contains(text)
        });
        let mut ids: Vec<u32> = roles.into_iter().flatten().collect();
        ids.extend(unused.map(|(id, _)| id));
        ids.sort_unstable();
        ids
    }

    /// The bytes of a token, often cut inside a UTF-8 sequence; none for an id outside the
    /// vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.inner.vocabulary.token_bytes(id).unwrap_or_default()
    }

    /// The ids of `text`, with the text of every added token becoming that token. Nothing is put
    /// in front or behind.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_with(text, |_, _| true)
    }

    /// The ids of `text` with no added tokens: marker text becomes ordinary tokens.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut out = Encoding::new(self, text);
        out.ordinary(0..text.len());
        out.ids
    }

    /// The ids of a rendered prompt, marker text in client ranges treated as the prompt says.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Vec<u32> {
        match prompt.marker_text {
            MarkerText::Allow => self.encode(&prompt.text),
            MarkerText::Defuse => self.encode_with(&prompt.text, |id, range| {
                let after = prompt.untrusted.partition_point(|u| u.end <= range.start);
                let touches = prompt
                    .untrusted
                    .get(after)
                    .is_some_and(|u| u.start < range.end);
                !touches || self.inner.defused.binary_search(&id).is_err()
            }),
        }
    }

    fn encode_with(&self, text: &str, allowed: impl Fn(u32, Range<usize>) -> bool) -> Vec<u32> {
        let mut out = Encoding::new(self, text);
        out.pass(0, 0..text.len(), &allowed);
        out.ids
    }

    /// The text of `ids`, each maximal invalid part of a UTF-8 sequence replaced by U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, UnknownToken> {
        let mut bytes = Vec::new();
        for (index, &id) in ids.iter().enumerate() {
            let n_vocab = self.n_vocab();
            let token = self.inner.vocabulary.token_bytes(id);
            bytes.extend_from_slice(token.ok_or(UnknownToken { id, index, n_vocab })?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The ids of one text as they grow.
struct Encoding<'a> {
    inner: &'a Inner,
    text: &'a str,
    ids: Vec<u32>,
    scratch: Scratch,
}

impl<'a> Encoding<'a> {
    fn new(tokenizer: &'a Tokenizer, text: &'a str) -> Encoding<'a> {
        Encoding {
            inner: &tokenizer.inner,
            text,
            ids: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Cuts the added tokens of this pass out of `range`, and leaves the rest to the next pass.
    fn pass(
        &mut self,
        pass: usize,
        range: Range<usize>,
        allowed: &impl Fn(u32, Range<usize>) -> bool,
    ) {
        let Some(Pass { matcher, ids }) = self.inner.passes.get(pass) else {
            return self.ordinary(range);
        };
        let mut start = range.start;
        let mut from = range.start;
        while let Some(found) = matcher.find(Input::new(self.text).span(from..range.end)) {
            let id = ids[found.pattern().as_usize()];
            if !allowed(id, found.range()) {
                // Another token may begin inside the text of this one.
                from = found.start() + 1;
                continue;
            }
            self.pass(pass + 1, start..found.start(), allowed);
            self.ids.push(id);
            (start, from) = (found.end(), found.end());
        }
        self.pass(pass + 1, start..range.end, allowed);
    }

    fn ordinary(&mut self, range: Range<usize>) {
        let text = &self.text[range];
        splitter::split(text, |piece| {
            let bytes = &text.as_bytes()[piece];
            self.inner
                .merges
                .encode(bytes, &mut self.scratch, &mut self.ids);
        });
    }
}
