//! The protocols: requests in, replies out. Nothing in here waits, locks or
//! knows the engine; every function is a value to a value.
//!
//! Every protocol offers `parse(body, context)`, a `Stream` that turns
//! [`ReplyEvent`](crate::generation::ReplyEvent)s into [`Frame`]s, and
//! `complete(outcome, shape)` for clients that do not stream.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::generation::{Failure, FailureKind, Thinking};

pub mod chat;
pub mod completions;
pub mod error;
pub mod messages;
pub mod models;
pub mod responses;
pub mod utility;

mod call_pieces;
mod choices;
mod fields;
mod json;
mod logprobs;
mod normalise;
mod preferences;
pub(crate) mod tools;
mod wishes;

pub use call_pieces::CallWriter;
pub(crate) use choices::join;
pub use choices::{Envelope, UsageReport, together};
pub use json::{Allowance, Document, checked};
pub use logprobs::Logprobs;
pub use preferences::{CallPieces, CompletionsPrompt, Media, Ping, Preferences};

/// What a request is read against: the server's settings and the request's
/// surroundings.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Thinking when the request says nothing of it.
    pub default_thinking: Thinking,
    /// The id under which the model is served.
    pub model_id: String,
    /// Names that stand for the model, with the thinking they ask for, if any.
    pub aliases: BTreeMap<String, Option<Thinking>>,
    /// Whether other model names are refused.
    pub strict_models: bool,
    /// Whether tools that only the vendor's servers can run are refused rather
    /// than left out.
    pub strict_tools: bool,
    /// What the server does where a request leaves a choice.
    pub preferences: Preferences,
    /// Names what a seed's effect depends on: build, weights, machine.
    pub system_fingerprint: Option<String>,
    /// Most tokens of a reply when the request says nothing.
    pub default_max_tokens: usize,
    /// Tokens of a context.
    pub n_context: usize,
    /// Seconds since the Unix epoch.
    pub now_unix: u64,
    /// Id of the request, also in its response header.
    pub request_id: String,
    /// Makes ids: 32 hex digits from a cryptographic source, new at every call.
    pub new_id: fn() -> String,
    /// Request headers by lower-case name, as far as a protocol reads them.
    pub headers: BTreeMap<String, String>,
}

/// The bytes of one server-sent event, its empty line included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// `data: JSON`.
    pub fn data(value: &Value) -> Frame {
        Frame(format!("data: {value}\n\n").into_bytes())
    }

    /// `event: NAME`, `data: JSON`.
    pub fn event(name: &str, value: &Value) -> Frame {
        Frame(format!("event: {name}\ndata: {value}\n\n").into_bytes())
    }

    /// The end marker of the OpenAI streams.
    pub fn done() -> Frame {
        Frame(b"data: [DONE]\n\n".to_vec())
    }

    /// A comment, which keeps a connection alive and which event parsers skip.
    pub fn comment(text: &str) -> Frame {
        Frame(format!(": {text}\n\n").into_bytes())
    }
}

/// A field of a request that is not what the API says.
pub fn invalid(param: &str, message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Invalid,
        message: message.into(),
        param: Some(param.to_owned()),
    }
}

/// A wish that this server does not grant.
pub fn unsupported(param: &str, message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Unsupported,
        message: message.into(),
        param: Some(param.to_owned()),
    }
}
