//! Tools for developers: `/tokenize`, `/detokenize`, `/apply-template`.

use serde_json::{Value, json};

use crate::api::chat;
use crate::api::fields::{Fields, PathStyle};
use crate::api::json::{Json, Kind};
use crate::api::{Document, RequestContext};
use crate::generation::{Failure, Generation};

/// Bytes of a text to tokenize, as it is spelt: several times what the longest context holds.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Which server's form a request has, and its answer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// llama.cpp: `content` and `tokens`.
    LlamaCpp,
    /// vLLM: `prompt` or `messages`, with the count and the context beside the tokens.
    Vllm,
}

/// What to tokenize.
#[derive(Clone, Debug)]
pub enum Source {
    /// Text as it is.
    Text {
        /// The text.
        text: String,
        /// Whether the begin-of-sentence token comes first.
        add_special: bool,
        /// Whether marker text becomes markers.
        parse_special: bool,
    },
    /// The prompt of a chat request.
    Chat(Box<Generation>),
}

/// A request to `/tokenize`.
#[derive(Clone, Debug)]
pub struct Tokenize {
    /// What to tokenize.
    pub source: Source,
    /// Whether each token comes with its text.
    pub with_pieces: bool,
    /// The form of the answer.
    pub dialect: Dialect,
}

/// Reads a request to `/tokenize`.
///
/// # Errors
/// A member of another shape, or no text.
pub fn parse_tokenize<'a>(
    body: impl Into<Document<'a>>,
    context: &RequestContext,
) -> Result<Tokenize, Failure> {
    let body = body.into();
    let fields = Fields::of_body(body.json(), PathStyle::Brackets)?;
    let with_pieces = fields.flag("with_pieces", false)?;
    if fields.get("messages").is_some() {
        let parsed = chat::parse(body.clone(), context)?;
        return Ok(Tokenize {
            source: Source::Chat(Box::new(parsed.generation)),
            with_pieces,
            dialect: Dialect::Vllm,
        });
    }
    let (dialect, name, add_special) = match fields.kind("prompt") {
        Kind::Nothing => (
            Dialect::LlamaCpp,
            "content",
            fields.flag("add_special", false)?,
        ),
        _ => (
            Dialect::Vllm,
            "prompt",
            fields.flag("add_special_tokens", true)?,
        ),
    };
    let spelt = fields.get(name).map_or("", Json::raw);
    if spelt.len() > MAX_TEXT_BYTES {
        let expected = format!("at most {} MiB of text", MAX_TEXT_BYTES >> 20);
        return Err(fields.mismatch(name, &expected));
    }
    let text = fields.text(name)?;
    Ok(Tokenize {
        source: Source::Text {
            text,
            add_special,
            parse_special: fields.flag("parse_special", true)?,
        },
        with_pieces,
        dialect,
    })
}

/// Writes the answer to [`Tokenize`], JSON text: ids, or ids with their bytes, of which those that
/// are no text by themselves are given as numbers.
pub fn tokenized<'a>(
    request: &Tokenize,
    ids: &[u32],
    bytes_of: impl Fn(u32) -> &'a [u8],
    n_context: usize,
) -> String {
    let mut out = match request.dialect {
        Dialect::LlamaCpp => "{\"tokens\":[".to_owned(),
        Dialect::Vllm => {
            let n = ids.len();
            format!("{{\"count\":{n},\"max_model_len\":{n_context},\"tokens\":[")
        }
    };
    for (i, &id) in ids.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match request.with_pieces {
            false => out.push_str(&id.to_string()),
            true => {
                let bytes = bytes_of(id);
                let piece = match std::str::from_utf8(bytes) {
                    Ok(piece) => json!({"id": id, "piece": piece}),
                    Err(_) => json!({"id": id, "piece": bytes}),
                };
                out.push_str(&piece.to_string());
            }
        }
    }
    out.push_str("]}");
    out
}

/// Reads a request to `/v1/chat/completions/control`: the id of the reply, or of the request,
/// whose reasoning is to end.
///
/// # Errors
/// No id, or another action.
pub fn parse_control<'a>(body: impl Into<Document<'a>>) -> Result<String, Failure> {
    let body = body.into();
    let fields = Fields::of_body(body.json(), PathStyle::Brackets)?;
    match fields.str("action")? {
        "reasoning_end" => Ok(fields.str("id")?.to_owned()),
        other => Err(fields.unknown_word("action", other, "reasoning_end")),
    }
}

/// Reads a request to `/detokenize`: the ids, each below `n_vocab`.
///
/// # Errors
/// Anything but a list of such ids.
pub fn parse_detokenize<'a>(
    body: impl Into<Document<'a>>,
    n_vocab: usize,
) -> Result<Vec<u32>, Failure> {
    let body = body.into();
    let fields = Fields::of_body(body.json(), PathStyle::Brackets)?;
    let expected = format!(
        "an array of token ids from 0 to {}",
        n_vocab.saturating_sub(1)
    );
    let Some(items) = fields.list("tokens")? else {
        return Err(fields.mismatch("tokens", &expected));
    };
    let mut ids = Vec::new();
    items.each(|item| {
        let id = item.as_u64().filter(|id| *id < n_vocab as u64);
        let id = id.and_then(|id| u32::try_from(id).ok());
        ids.push(id.ok_or_else(|| fields.mismatch("tokens", &expected))?);
        Ok(())
    })?;
    Ok(ids)
}

/// The answer to `/detokenize`, under both servers' names.
pub fn detokenized(text: &str) -> Value {
    json!({"content": text, "prompt": text})
}

/// The answer to `/apply-template`, whose request is one of [`chat::parse`].
pub fn applied_template(prompt: &str, n_tokens: usize) -> Value {
    json!({"prompt": prompt, "tokens": n_tokens})
}
