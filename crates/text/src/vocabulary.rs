//! The entries of a tokenizer: their bytes, which of them are matched as whole strings, and the
//! ids of the chat protocol's markers, found by text.

use std::collections::HashMap;
use std::ops::Range;

use crate::bpe::Merges;

/// `token_type` of an ordinary entry in a GGUF file.
const TYPE_NORMAL: i32 = 1;
/// `token_type` of a special entry in a GGUF file.
const TYPE_CONTROL: i32 = 3;
/// `token_type` of an added entry that is not special.
const TYPE_USER_DEFINED: i32 = 4;
/// `token_type` of a hole in the vocabulary, which no text produces.
const TYPE_UNUSED: i32 = 5;

/// `tokenizer.ggml.model` of byte-level BPE.
const GGUF_MODEL: &str = "gpt2";
/// `tokenizer.ggml.pre` of the splitter in [`crate::splitter`], new name and old.
const GGUF_PRE: [&str; 2] = ["joyai-llm", "deepseek-v3"];

/// Why a vocabulary was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The GGUF metadata name another algorithm.
    #[error("{key}: found {found:?}, expected {expected}; this file's tokenizer is not supported")]
    UnsupportedKind {
        /// Metadata key.
        key: &'static str,
        /// Value in the file.
        found: String,
        /// Values that are supported.
        expected: String,
    },
    /// `tokenizer.json` asks for something that this tokenizer does not do.
    #[error("tokenizer.json: {at}: found {found}, expected {expected}")]
    UnsupportedSetting {
        /// Place in the document.
        at: String,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },
    /// `tokenizer.json` is not JSON, or not of the expected shape.
    #[error("tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// The two arrays do not belong together.
    #[error(
        "tokenizer.ggml.token_type has {n_types} entries, tokenizer.ggml.tokens has {n_tokens}; they must be equally long"
    )]
    TypeCount {
        /// Entries in the token array.
        n_tokens: usize,
        /// Entries in the type array.
        n_types: usize,
    },
    /// A type that byte-level BPE does not use.
    #[error(
        "token {id} ({text:?}): type {found}, expected 1 (normal), 3 (control), 4 (user defined) or 5 (unused)"
    )]
    TokenType {
        /// Token id.
        id: usize,
        /// Token text.
        text: String,
        /// Type in the file.
        found: i32,
    },
    /// More entries than an id can number.
    #[error("{found} tokens: ids are 32 bits wide")]
    TooManyTokens {
        /// Entries in the file.
        found: usize,
    },
    /// A token or merge that is not UTF-8.
    #[error("{what} {index} is not UTF-8")]
    NotUtf8 {
        /// `token` or `merge`.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// An ordinary token with a character that stands for no byte.
    #[error(
        "token {id} ({text:?}): {found:?} is not one of the 256 characters that stand for bytes; an ordinary token is written in them (a marker needs type 3 or 4)"
    )]
    NotByteLevel {
        /// Token id.
        id: usize,
        /// Token text.
        text: String,
        /// The offending character.
        found: char,
    },
    /// An id without an entry.
    #[error("token {id} is missing: {n_vocab} entries must have the ids 0 to {}", n_vocab - 1)]
    Gap {
        /// First id that has no entry.
        id: usize,
        /// Number of entries.
        n_vocab: usize,
    },
    /// Two entries of the same text.
    #[error("tokens {first} and {second} are both {text:?}; encoding would be ambiguous")]
    Duplicate {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// Their text.
        text: String,
    },
    /// A byte that no text containing it could be encoded with.
    #[error("no token stands for the single byte 0x{byte:02x}; byte-level BPE needs all 256")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// The chat protocol cannot be spoken without this marker.
    #[error("the {name} marker {text:?} is {}; the chat protocol needs it as one added token, so this is not a vocabulary of DeepSeek V4", if *.ordinary { "an ordinary token" } else { "missing from the vocabulary" })]
    MissingProtocolToken {
        /// Name of the marker.
        name: &'static str,
        /// Its exact text.
        text: &'static str,
        /// Whether the text is there, but as an ordinary token.
        ordinary: bool,
    },
    /// A merge that does not join two tokens into a third.
    #[error("merge {index} ({text:?}): {reason}")]
    Merge {
        /// Index in the merge list.
        index: usize,
        /// The merge as written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The matcher of added tokens could not be built.
    #[error("added tokens: {0}")]
    Matcher(#[from] aho_corasick::BuildError),
}

/// Ids of the chat protocol's markers, as the vocabulary at hand numbers them.
///
/// The first seven are always there; a vocabulary that lacks one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolTokens {
    /// `<｜begin▁of▁sentence｜>`
    pub bos: u32,
    /// `<｜end▁of▁sentence｜>`
    pub eos: u32,
    /// `<｜User｜>`
    pub user: u32,
    /// `<｜Assistant｜>`
    pub assistant: u32,
    /// `<think>`
    pub think_open: u32,
    /// `</think>`
    pub think_close: u32,
    /// `｜DSML｜`, without angle brackets
    pub dsml: u32,
    /// `<｜▁pad▁｜>`
    pub pad: Option<u32>,
    /// `<｜latest_reminder｜>`
    pub latest_reminder: Option<u32>,
    /// `<｜action｜>`
    pub action: Option<u32>,
    /// `<｜query｜>`
    pub query: Option<u32>,
    /// `<｜authority｜>`
    pub authority: Option<u32>,
    /// `<｜domain｜>`
    pub domain: Option<u32>,
    /// `<｜title｜>`
    pub title: Option<u32>,
    /// `<｜extracted_url｜>`
    pub extracted_url: Option<u32>,
    /// `<｜read_url｜>`
    pub read_url: Option<u32>,
    /// `<｜fim▁hole｜>`
    pub fim_hole: Option<u32>,
    /// `<｜fim▁begin｜>`
    pub fim_begin: Option<u32>,
    /// `<｜fim▁end｜>`
    pub fim_end: Option<u32>,
}

impl ProtocolTokens {
    fn find(ids: &HashMap<&str, (u32, Kind)>) -> Result<ProtocolTokens, LoadError> {
        let optional = |text: &str| match ids.get(text) {
            Some(&(id, Kind::Added(_))) => Some(id),
            _ => None,
        };
        let required = |name, text| {
            optional(text).ok_or(LoadError::MissingProtocolToken {
                name,
                text,
                ordinary: ids.contains_key(text),
            })
        };
        use crate::markers as m;
        Ok(ProtocolTokens {
            bos: required("beginning of sentence", m::BOS)?,
            eos: required("end of sentence", m::EOS)?,
            user: required("user", m::USER)?,
            assistant: required("assistant", m::ASSISTANT)?,
            think_open: required("think open", m::THINK_OPEN)?,
            think_close: required("think close", m::THINK_CLOSE)?,
            dsml: required("DSML", m::DSML)?,
            pad: optional("<｜▁pad▁｜>"),
            latest_reminder: optional(m::LATEST_REMINDER),
            action: optional("<｜action｜>"),
            query: optional("<｜query｜>"),
            authority: optional("<｜authority｜>"),
            domain: optional("<｜domain｜>"),
            title: optional("<｜title｜>"),
            extracted_url: optional("<｜extracted_url｜>"),
            read_url: optional("<｜read_url｜>"),
            fim_hole: optional("<｜fim▁hole｜>"),
            fim_begin: optional("<｜fim▁begin｜>"),
            fim_end: optional("<｜fim▁end｜>"),
        })
    }

    /// The markers that structure a prompt and have no business in text that came from a client:
    /// all but the think tokens and DSML, which coding agents legitimately carry.
    pub fn structural(&self) -> impl Iterator<Item = u32> {
        [self.bos, self.eos, self.user, self.assistant]
            .into_iter()
            .chain(
                [
                    self.pad,
                    self.latest_reminder,
                    self.action,
                    self.query,
                    self.authority,
                    self.domain,
                    self.title,
                    self.extracted_url,
                    self.read_url,
                    self.fim_hole,
                    self.fim_begin,
                    self.fim_end,
                ]
                .into_iter()
                .flatten(),
            )
    }
}

/// What a vocabulary entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reached by merging; its text is written in byte characters.
    Ordinary,
    /// Matched as a whole string, in the pass of this number (see [`crate::Tokenizer`]).
    Added(usize),
    /// A hole.
    Unused,
}

/// One vocabulary entry as a file gives it.
pub(crate) struct Entry {
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

/// The bytes of every token, the added tokens, and the protocol's ids.
pub(crate) struct Vocabulary {
    /// Bytes of all tokens, one after the other in the order of their ids.
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`: `[n_vocab]`.
    ends: Vec<u32>,
    /// Added tokens of each pass: id and text.
    pub(crate) added: Vec<Vec<(u32, String)>>,
    pub(crate) protocol: ProtocolTokens,
}

impl Vocabulary {
    /// Checks the entries and resolves the merges, each written as `left right`.
    pub(crate) fn new<M: AsRef<str>>(
        entries: &[Entry],
        merges: &[M],
    ) -> Result<(Vocabulary, Merges), LoadError> {
        if u32::try_from(entries.len()).is_err() {
            return Err(LoadError::TooManyTokens {
                found: entries.len(),
            });
        }
        let mut ids = HashMap::with_capacity(entries.len());
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(entries.len());
        let mut added = Vec::new();
        let characters = byte_characters();
        // Indexed by character; the last of them is U+0143.
        let mut byte_of = [None; 0x144];
        for (byte, &c) in (0..=255u8).zip(&characters) {
            byte_of[c as usize] = Some(byte);
        }
        for (id, entry) in entries.iter().enumerate() {
            let text = entry.text.as_str();
            if entry.kind != Kind::Unused
                && let Some((first, _)) = ids.insert(text, (id as u32, entry.kind))
            {
                return Err(LoadError::Duplicate {
                    first,
                    second: id as u32,
                    text: text.to_owned(),
                });
            }
            match entry.kind {
                Kind::Ordinary => {
                    for c in text.chars() {
                        let byte = byte_of.get(c as usize).copied().flatten();
                        bytes.push(byte.ok_or_else(|| LoadError::NotByteLevel {
                            id,
                            text: text.to_owned(),
                            found: c,
                        })?);
                    }
                }
                Kind::Added(pass) => {
                    bytes.extend_from_slice(text.as_bytes());
                    if added.len() <= pass {
                        added.resize_with(pass + 1, Vec::new);
                    }
                    added[pass].push((id as u32, text.to_owned()));
                }
                Kind::Unused => bytes.extend_from_slice(text.as_bytes()),
            }
            let end = u32::try_from(bytes.len()).map_err(|_| LoadError::TooManyTokens {
                found: entries.len(),
            })?;
            ends.push(end);
        }
        let protocol = ProtocolTokens::find(&ids)?;

        let ordinary = |text: &str| match ids.get(text) {
            Some(&(id, Kind::Ordinary)) => Some(id),
            _ => None,
        };
        let mut byte_ids = [0; 256];
        for (byte, c) in characters.iter().enumerate() {
            byte_ids[byte] = ordinary(c.encode_utf8(&mut [0; 4]))
                .ok_or(LoadError::MissingByte { byte: byte as u8 })?;
        }
        let mut rules = Merges::new(byte_ids, merges.len());
        let mut joined = String::new();
        for (index, merge) in merges.iter().enumerate() {
            let merge = merge.as_ref();
            let fail = |reason| LoadError::Merge {
                index,
                text: merge.to_owned(),
                reason,
            };
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| fail("expected two tokens with a space between".to_owned()))?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = |text: &str| {
                ordinary(text).ok_or_else(|| fail(format!("{text:?} is not an ordinary token")))
            };
            rules.insert((id(left)?, id(right)?), id(&joined)?);
        }
        let vocabulary = Vocabulary {
            bytes,
            ends,
            added,
            protocol,
        };
        Ok((vocabulary, rules))
    }

    /// Number of tokens; ids run from 0 to one less.
    pub(crate) fn n_vocab(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of token `id`; `None` outside the vocabulary.
    pub(crate) fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = id.checked_sub(1).map_or(0, |i| self.ends[i] as usize);
        Some(&self.bytes[start..end])
    }
}

/// Entries and merges from the metadata arrays of a GGUF file.
pub(crate) fn from_gguf(
    model: &str,
    pre: &str,
    tokens: impl IntoIterator<Item = impl AsRef<[u8]>>,
    token_types: &[i32],
    merges: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Result<(Vec<Entry>, Vec<String>), LoadError> {
    let check = |key, found: &str, expected: &[&str]| {
        if expected.contains(&found) {
            return Ok(());
        }
        Err(LoadError::UnsupportedKind {
            key,
            found: found.to_owned(),
            expected: expected.join(" or "),
        })
    };
    check("tokenizer.ggml.model", model, &[GGUF_MODEL])?;
    check("tokenizer.ggml.pre", pre, &GGUF_PRE)?;
    let texts = tokens
        .into_iter()
        .enumerate()
        .map(|(index, token)| utf8("token", index, token.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    if texts.len() != token_types.len() {
        return Err(LoadError::TypeCount {
            n_tokens: texts.len(),
            n_types: token_types.len(),
        });
    }
    let entries = texts
        .into_iter()
        .zip(token_types)
        .enumerate()
        .map(|(id, (text, &token_type))| {
            let kind = match token_type {
                TYPE_NORMAL => Kind::Ordinary,
                TYPE_CONTROL | TYPE_USER_DEFINED => Kind::Added(0),
                TYPE_UNUSED => Kind::Unused,
                found => return Err(LoadError::TokenType { id, text, found }),
            };
            Ok(Entry { text, kind })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let merges = merges
        .into_iter()
        .enumerate()
        .map(|(index, merge)| utf8("merge", index, merge.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((entries, merges))
}

fn utf8(what: &'static str, index: usize, bytes: &[u8]) -> Result<String, LoadError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(LoadError::NotUtf8 { what, index }),
    }
}

/// The character that stands for each byte in the text of an ordinary token: printable Latin-1
/// bytes stand for themselves, the others for U+0100 upward in ascending order.
pub(crate) fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let printable: [Range<usize>; 3] = [0x21..0x7f, 0xa1..0xad, 0xae..0x100];
        let code = if printable.iter().any(|r| r.contains(&byte)) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}
