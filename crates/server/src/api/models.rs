//! `/v1/models`: one answer that fits both vendors' clients.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::api::{RequestContext, wishes};
use crate::generation::Failure;

/// What is told of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Seconds since 1970 at which the file was made, or the server was started.
    pub created: u64,
    /// Who made it.
    pub owned_by: String,
    /// The name for people.
    pub display_name: String,
    /// Tokens of a context, as the server was started.
    pub n_context: usize,
    /// Tokens of the longest context that the model was trained for.
    pub n_context_trained: usize,
    /// Most tokens of a reply.
    pub max_tokens: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Weights.
    pub n_params: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
}

/// The list: the model under its own name, then under the names that stand for it.
pub fn list(card: &ModelCard, context: &RequestContext) -> Value {
    let aliases = context.aliases.keys().map(String::as_str);
    let names = std::iter::once(context.model_id.as_str())
        .chain(aliases.filter(|alias| *alias != context.model_id));
    let entries: Vec<Value> = names.map(|name| entry(card, name)).collect();
    let id_of = |entry: Option<&Value>| entry.map_or(Value::Null, |entry| entry["id"].clone());
    let (first_id, last_id) = (id_of(entries.first()), id_of(entries.last()));
    json!({
        "object": "list",
        "data": entries,
        "has_more": false,
        "first_id": first_id,
        "last_id": last_id,
    })
}

/// The model under the name that was asked for. Any name is served, so any name is found, unless
/// the server is strict about names.
///
/// # Errors
/// A name that is not served.
pub fn one(card: &ModelCard, name: &str, context: &RequestContext) -> Result<Value, Failure> {
    wishes::check_model(name, context)?;
    Ok(entry(card, name))
}

fn entry(card: &ModelCard, name: &str) -> Value {
    // The last second that four digits of a year can name.
    const LAST_SECOND: u64 = 253_402_300_799;
    let created = Duration::from_secs(card.created.min(LAST_SECOND));
    let created_at = humantime::format_rfc3339_seconds(UNIX_EPOCH + created).to_string();
    json!({
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "type": "model",
        "display_name": card.display_name,
        "created_at": created_at,
        "lifecycle": "active",
        "max_input_tokens": card.n_context.saturating_sub(1),
        "max_tokens": card.max_tokens,
        "max_model_len": card.n_context,
        "meta": {
            "n_ctx": card.n_context,
            "n_ctx_train": card.n_context_trained,
            "n_vocab": card.n_vocab,
            "n_params": card.n_params,
            "size": card.size_bytes,
        },
    })
}
