//! Log probabilities as these APIs write them.

use serde_json::{Value, json};

use crate::generation::{ReplyEvent, TokenLogprob};

/// The log probabilities of a reply's tokens, for a body that is not streamed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Of the reasoning.
    pub reasoning: Vec<TokenLogprob>,
    /// Of the content.
    pub content: Vec<TokenLogprob>,
}

impl Logprobs {
    /// Takes those that an event brings.
    pub fn collect(&mut self, event: &ReplyEvent) {
        match event {
            ReplyEvent::Reasoning { logprobs, .. } => self.reasoning.extend_from_slice(logprobs),
            ReplyEvent::Content { logprobs, .. } => self.content.extend_from_slice(logprobs),
            _ => {}
        }
    }
}

/// A token as it stands in a list. Its text is lossy where it is a part of a character.
pub(crate) fn entry(token: &TokenLogprob) -> Value {
    let entry = |bytes: &[u8], logprob: f32| {
        json!({
            "token": String::from_utf8_lossy(bytes),
            "logprob": finite(logprob),
            "bytes": bytes,
        })
    };
    let top: Vec<Value> = token
        .top
        .iter()
        .map(|(bytes, logprob)| entry(bytes, *logprob))
        .collect();
    let mut value = entry(&token.bytes, token.logprob);
    value["top_logprobs"] = top.into();
    value
}

/// JSON has no infinity; -9999 is what the hosted service writes.
pub(crate) fn finite(logprob: f32) -> f32 {
    match logprob.is_finite() {
        true => logprob,
        false => -9999.0,
    }
}
