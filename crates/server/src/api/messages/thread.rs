//! Conversations that a client goes on with by the id of their last message.
//!
//! With `thread: {"type": "create"}` the whole conversation comes; from then on the client sends what
//! is new and the id of the message before, and system text and tools are those it began with.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::fields::Fields;
use crate::api::invalid;
use crate::api::json::Json;
use crate::generation::{Failure, FailureKind};

/// Members of a request that a thread keeps from its first one.
const HEAD: [&str; 2] = ["system", "tools"];

/// A conversation up to a message of the model's.
#[derive(Clone, Debug, PartialEq)]
pub struct Thread {
    /// The message before what is new; `None` when all of it is.
    pub previous: Option<String>,
    /// The JSON text of an object with the system text and the tools.
    pub head: Arc<str>,
    /// The messages, the model's included, as JSON text.
    pub messages: Vec<Arc<str>>,
    /// How many of them the client has just sent.
    pub n_new: usize,
}

/// Where conversations are kept.
pub trait ThreadStore {
    /// The conversation up to the message of this id.
    fn thread(&self, id: &str) -> Option<Thread>;
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoThreads;

impl ThreadStore for NoThreads {
    fn thread(&self, _: &str) -> Option<Thread> {
        None
    }
}

/// Reads `thread`: the conversation to go on with and to keep, if the request speaks of one.
pub(super) fn read(fields: &Fields, store: &dyn ThreadStore) -> Result<Option<Thread>, Failure> {
    let Some(wish) = fields.object("thread")? else {
        return Ok(None);
    };
    let of_request = |name: &&str| fields.get(name).map_or("null", Json::raw);
    match wish.str("type")? {
        "create" => {
            let [system, tools] = HEAD.each_ref().map(of_request);
            Ok(Some(Thread {
                previous: None,
                head: format!(r#"{{"system":{system},"tools":{tools}}}"#).into(),
                messages: Vec::new(),
                n_new: 0,
            }))
        }
        "continue" => {
            let id = wish.str("previous_message_id")?;
            let Some(mut thread) = store.thread(id) else {
                return Err(Failure {
                    kind: FailureKind::NotFound,
                    message: "thread.previous_message_id: no thread of this message is kept; send \
                              the full conversation with thread {\"type\": \"create\"}."
                        .to_owned(),
                    param: Some(wish.path_of("previous_message_id")),
                });
            };
            let head = value_of(&thread.head);
            for name in HEAD {
                if fields.value(name)?.is_some_and(|value| value != head[name]) {
                    return Err(invalid(
                        "thread",
                        format!(
                            "{name}: this is not what the thread began with, expected the same or \
                             nothing; to change it, send the full conversation with thread \
                             {{\"type\": \"create\"}}."
                        ),
                    ));
                }
            }
            thread.previous = Some(id.to_owned());
            thread.n_new = 0;
            Ok(Some(thread))
        }
        other => Err(wish.unknown_word("type", other, "create or continue")),
    }
}

impl Thread {
    /// What a log keeps of it once the model has said `reply`: what is new.
    pub fn record(&self, reply: &Value) -> Value {
        let n_old = self.messages.len() - self.n_new;
        let new = self.messages[n_old..].iter().map(|m| value_of(m));
        let new: Vec<Value> = new.collect();
        match &self.previous {
            Some(previous) => json!({"previous": previous, "messages": new, "reply": reply}),
            None => json!({"head": value_of(&self.head), "messages": new, "reply": reply}),
        }
    }

    /// Puts a conversation together from the records of its messages, of which `record` has the one
    /// of an id. `None` when one is not there.
    pub fn of_records(id: &str, record: impl Fn(&str) -> Option<Value>) -> Option<Thread> {
        let mut parts: Vec<Vec<Value>> = Vec::new();
        let mut next = id.to_owned();
        let head = loop {
            let mut found = record(&next)?;
            let mut part = match found["messages"].take() {
                Value::Array(messages) => messages,
                _ => return None,
            };
            part.push(found["reply"].take());
            parts.push(part);
            match found["previous"].take() {
                Value::String(previous) if parts.len() < MAX_RECORDS => next = previous,
                Value::Null => break found["head"].take(),
                _ => return None,
            }
        };
        let messages = parts.into_iter().rev().flatten();
        Some(Thread {
            previous: None,
            head: head.to_string().into(),
            messages: messages.map(|m| m.to_string().into()).collect(),
            n_new: 0,
        })
    }
}

/// The value of a text that was read before.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Most messages of the model's in a conversation that is put together from records.
const MAX_RECORDS: usize = 10_000;
