//! The vocabulary in the publisher's `tokenizer.json`. Only the one shape that DeepSeek V4 uses
//! is read; a document that asks for anything else is refused rather than half understood.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::splitter;
use crate::vocabulary::{Entry, Kind, LoadError};

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    normalizer: Value,
    pre_tokenizer: Value,
    added_tokens: Vec<AddedToken>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Model {
    r#type: String,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    byte_fallback: Value,
    #[serde(default)]
    ignore_merges: Value,
    vocab: HashMap<String, u32>,
    merges: Vec<MergeText>,
}

/// A merge stands as `"left right"` or as `["left", "right"]`, depending on the writer's age.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeText {
    Joined(String),
    Pair(String, String),
}

/// Entries in the order of their ids, and merges as `left right`.
pub(crate) fn read(text: &str) -> Result<(Vec<Entry>, Vec<String>), LoadError> {
    let document: Document = serde_json::from_str(text)?;
    check_settings(&document)?;
    let Document {
        added_tokens,
        model,
        ..
    } = document;

    // An added token may repeat an entry of the model's own list, as BOS and EOS do.
    let repeated = |token: &&AddedToken| model.vocab.get(&token.content) == Some(&token.id);
    let n_vocab =
        model.vocab.len() + added_tokens.len() - added_tokens.iter().filter(repeated).count();
    let mut entries: Vec<Option<Entry>> = Vec::new();
    entries.resize_with(n_vocab, || None);
    let mut put = |id: u32, entry: Entry| match entries.get_mut(id as usize) {
        Some(place) => Ok(place.replace(entry)),
        None => Err(unsupported(
            format!("the id of {:?}", entry.text),
            id.to_string(),
            format!("an id below {n_vocab}, the number of tokens"),
        )),
    };
    for (text, id) in model.vocab {
        let kind = Kind::Ordinary;
        if let Some(other) = put(id, Entry { text, kind })? {
            return Err(two_entries(id, &other.text));
        }
    }
    for token in added_tokens {
        // Tokens that are not normalized are cut out first.
        let kind = Kind::Added(usize::from(token.normalized));
        let text = token.content;
        if let Some(other) = put(
            token.id,
            Entry {
                text: text.clone(),
                kind,
            },
        )? && other.text != text
        {
            return Err(two_entries(token.id, &other.text));
        }
    }
    let entries = entries
        .into_iter()
        .enumerate()
        .map(|(id, entry)| entry.ok_or(LoadError::Gap { id, n_vocab }))
        .collect::<Result<Vec<_>, _>>()?;
    let merges = model
        .merges
        .into_iter()
        .map(|merge| match merge {
            MergeText::Joined(text) => text,
            MergeText::Pair(left, right) => format!("{left} {right}"),
        })
        .collect();
    Ok((entries, merges))
}

fn unsupported(at: String, found: String, expected: String) -> LoadError {
    LoadError::UnsupportedSetting {
        at,
        found,
        expected,
    }
}

fn two_entries(id: u32, text: &str) -> LoadError {
    let found = format!("a second token beside {text:?}");
    unsupported(format!("id {id}"), found, "one token".to_owned())
}

fn check_settings(document: &Document) -> Result<(), LoadError> {
    let model = &document.model;
    let check = |ok: bool, at: &str, found: &dyn std::fmt::Display, expected: &str| {
        if ok {
            return Ok(());
        }
        Err(unsupported(
            at.to_owned(),
            found.to_string(),
            expected.to_owned(),
        ))
    };
    check(model.r#type == "BPE", "model.type", &model.r#type, "BPE")?;
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value == "";
    for (name, value) in [
        ("model.dropout", &model.dropout),
        ("model.unk_token", &model.unk_token),
        (
            "model.continuing_subword_prefix",
            &model.continuing_subword_prefix,
        ),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
        ("model.byte_fallback", &model.byte_fallback),
        ("model.ignore_merges", &model.ignore_merges),
    ] {
        check(off(value), name, value, "nothing")?;
    }
    let normalizer = &document.normalizer;
    let no_steps = normalizer["type"] == "Sequence"
        && normalizer["normalizers"]
            .as_array()
            .is_some_and(Vec::is_empty);
    check(
        normalizer.is_null() || no_steps,
        "normalizer",
        normalizer,
        "none",
    )?;
    for token in &document.added_tokens {
        check(
            !(token.single_word || token.lstrip || token.rstrip),
            &format!("added token {:?}", token.content),
            &"single_word, lstrip or rstrip",
            "none of them",
        )?;
    }

    let steps = document.pre_tokenizer["pretokenizers"].as_array();
    let steps = steps.map_or(&[][..], Vec::as_slice);
    check(
        document.pre_tokenizer["type"] == "Sequence" && steps.len() == splitter::PATTERNS.len() + 1,
        "pre_tokenizer",
        &document.pre_tokenizer,
        "a sequence of three splits and the byte-level step",
    )?;
    for (i, pattern) in splitter::PATTERNS.iter().enumerate() {
        let step = &steps[i];
        let same = step["type"] == "Split"
            && step["pattern"]["Regex"] == *pattern
            && step["behavior"] == "Isolated"
            && step["invert"] == false;
        let at = format!("pre_tokenizer.pretokenizers[{i}]");
        check(
            same,
            &at,
            step,
            &format!("an isolating split at {pattern:?}"),
        )?;
    }
    let last = &steps[splitter::PATTERNS.len()];
    check(
        last["type"] == "ByteLevel"
            && last["use_regex"] == false
            && last["add_prefix_space"] == false,
        "the last step of pre_tokenizer",
        last,
        "ByteLevel without a regular expression and without a prefix space",
    )
}
