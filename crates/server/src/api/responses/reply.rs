//! Replies as output items: one response object, or the events that build it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::api::responses::item::{Kind, OpenItem, Status, call_status, last_status};
use crate::api::responses::origin::Origins;
use crate::api::{Frame, Logprobs, logprobs};
use crate::generation::{Failure, FailureKind, Finish, Outcome, ReplyEvent, TokenLogprob, Usage};

/// A client that counts events and not bytes gets one at least this often.
const EVENT_INTERVAL: Duration = Duration::from_secs(30);

/// What becomes of the reasoning in a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningDisplay {
    /// One summary part with the whole of it, which every agent shows and sends back.
    #[default]
    Summary,
    /// One `reasoning_text` content part.
    Text,
    /// Neither.
    Hidden,
}

/// What an encoder needs to know of the request and of the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplyShape {
    /// The response's id: `resp_` and 48 random hex digits. The ids of its items are derived
    /// from it and from the calls' ids.
    pub id: String,
    /// Seconds since 1970 when the request came.
    pub created_at: u64,
    /// The members of the response object that only repeat the request, in their order.
    pub echo: Map<String, Value>,
    /// What becomes of the reasoning.
    pub reasoning: ReasoningDisplay,
    /// Opaque handle on the turn, for a client that asked for encrypted reasoning. It sends it
    /// back untouched.
    pub encrypted_content: Option<String>,
    /// Whether to list the log probabilities of the text.
    pub logprobs: bool,
    /// How the client declared its tools.
    pub origins: Origins,
    /// What of the request is not done.
    pub warnings: Vec<String>,
}

/// The response object of a reply that is not streamed.
///
/// `tokens` are the log probabilities; those of the content stand in the text where the client
/// asked for them.
pub fn complete(outcome: &Outcome, tokens: &Logprobs, shape: &ReplyShape) -> Value {
    let mut items: Vec<OpenItem> = Vec::new();
    if !outcome.reasoning.is_empty() && shape.shows_reasoning() {
        let mut item = OpenItem::reasoning(shape);
        item.text.push_str(&outcome.reasoning);
        items.push(item);
    }
    if !outcome.content.is_empty() {
        let mut item = OpenItem::message(shape);
        item.text.push_str(&outcome.content);
        if shape.logprobs {
            item.logprobs = tokens.content.iter().map(logprobs::entry).collect();
        }
        items.push(item);
    }
    let mut output: Vec<Value> = Vec::new();
    let n_texts = items.len();
    for (i, item) in items.iter().enumerate() {
        let is_last = i + 1 == n_texts && outcome.calls.is_empty();
        let status = match is_last {
            true => last_status(&outcome.finish),
            false => Status::Completed,
        };
        output.push(item.value(shape, status));
    }
    for call in &outcome.calls {
        let mut item = OpenItem::call(&call.id, &call.name, shape);
        item.text.push_str(&call.arguments);
        let status = call_status(call);
        if item.is_shown(status) {
            output.push(item.value(shape, status));
        }
    }
    if output.is_empty() && outcome.calls.is_empty() {
        output.push(OpenItem::message(shape).value(shape, last_status(&outcome.finish)));
    }
    finished_response(outcome, output, shape)
}

/// The body of an answer to `/v1/responses/input_tokens`.
pub fn token_count(n_prompt: usize) -> Value {
    json!({"object": "response.input_tokens", "input_tokens": n_prompt})
}

impl ReplyShape {
    /// Whether reasoning becomes an item at all.
    fn shows_reasoning(&self) -> bool {
        self.reasoning != ReasoningDisplay::Hidden || self.encrypted_content.is_some()
    }

    /// The 24 hex digits of an item's id, by the item's number among the texts of the reply.
    pub(super) fn item_digits(&self, i: usize) -> String {
        let digits = self.id.strip_prefix("resp_").unwrap_or(&self.id);
        let half = digits.len() / 2;
        match (digits.is_ascii(), i) {
            (true, 0) => digits[..half].to_owned(),
            (true, 1) => digits[half..].to_owned(),
            _ => format!("{digits}{i:x}"),
        }
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.n_prompt,
        "input_tokens_details": {
            "cached_tokens": usage.n_cached,
            "cache_write_tokens": usage.n_prompt.saturating_sub(usage.n_cached),
        },
        "output_tokens": usage.n_generated,
        "output_tokens_details": {"reasoning_tokens": usage.n_reasoning},
        "total_tokens": usage.n_prompt + usage.n_generated,
    })
}

/// A response object; what is not known yet is null.
fn response(shape: &ReplyShape, status: &str, output: Vec<Value>) -> Value {
    let mut object = json!({
        "id": shape.id,
        "object": "response",
        "created_at": shape.created_at,
        "completed_at": null,
        "status": status,
        "background": false,
        "error": null,
        "incomplete_details": null,
        "output": output,
        "usage": null,
    });
    for (name, value) in &shape.echo {
        object[name.as_str()] = value.clone();
    }
    if !shape.warnings.is_empty() {
        object["warnings"] = shape.warnings.clone().into();
    }
    object
}

fn finished_response(outcome: &Outcome, output: Vec<Value>, shape: &ReplyShape) -> Value {
    let (status, reason) = match outcome.finish {
        Finish::Stop | Finish::StopString(_) | Finish::ToolCalls => ("completed", None),
        // The set of reasons has no word for a full context.
        Finish::Length | Finish::ContextFull => ("incomplete", Some("max_output_tokens")),
        Finish::Cancelled => ("cancelled", None),
    };
    let mut object = response(shape, status, output);
    if let Some(reason) = reason {
        object["incomplete_details"] = json!({"reason": reason});
    }
    let timings = &outcome.timings;
    let elapsed = timings.queue + timings.prefill + timings.decode;
    object["completed_at"] = (shape.created_at + elapsed.as_secs()).into();
    object["usage"] = usage(&outcome.usage);
    object
}

/// Writes the events of one reply.
///
/// Sequence numbers have no gaps. Items follow each other: each is added, grows and is done
/// before the next. The stream ends with exactly one of `response.completed`,
/// `response.incomplete` and `response.failed`; whatever comes after is answered with nothing.
#[derive(Clone, Debug)]
pub struct Stream {
    shape: ReplyShape,
    n_events: u64,
    opened: bool,
    ended: bool,
    /// Items that are done, in output order.
    output: Vec<Value>,
    item: Option<OpenItem>,
    /// How long the client has read comments only.
    silence: Duration,
    response: Option<Value>,
}

impl Stream {
    /// A stream that has sent nothing.
    pub fn new(shape: ReplyShape) -> Stream {
        Stream {
            shape,
            n_events: 0,
            opened: false,
            ended: false,
            output: Vec::new(),
            item: None,
            silence: Duration::ZERO,
            response: None,
        }
    }

    /// `response.created` and `response.in_progress`, to be sent with the headers.
    pub fn open(&mut self) -> Vec<Frame> {
        if self.opened || self.ended {
            return Vec::new();
        }
        self.opened = true;
        let mut frames = Vec::new();
        let object = response(&self.shape, "in_progress", Vec::new());
        self.emit("response.created", json!({"response": object}), &mut frames);
        self.in_progress(&mut frames);
        frames
    }

    /// What one event of the worker becomes.
    pub fn event(&mut self, event: &ReplyEvent) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.ended {
            return frames;
        }
        match event {
            ReplyEvent::Started { .. } | ReplyEvent::Progress { .. } => {}
            ReplyEvent::Reasoning { text, .. } => self.reasoning(text, &mut frames),
            ReplyEvent::Content { text, logprobs } => self.content(text, logprobs, &mut frames),
            ReplyEvent::ToolStart { id, name, .. } => self.tool_start(id, name, &mut frames),
            ReplyEvent::ToolArguments { text, .. } => self.arguments(text, &mut frames),
            ReplyEvent::ToolEnd { .. } => self.close_item(Status::Completed, &mut frames),
            ReplyEvent::Finished(outcome) => self.finish(outcome, &mut frames),
            ReplyEvent::Failed(failure) => self.fail(failure, &mut frames),
        }
        if !frames.is_empty() {
            self.silence = Duration::ZERO;
        }
        frames
    }

    /// A comment, or every 30 s a repeated `response.in_progress`: one agent does not count
    /// comments as a sign of life. `idle` is the time since the client was last sent anything.
    pub fn keep_alive(&mut self, idle: Duration) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.ended {
            return frames;
        }
        self.silence += idle;
        if self.opened && self.silence >= EVENT_INTERVAL {
            self.silence = Duration::ZERO;
            self.in_progress(&mut frames);
        } else {
            frames.push(Frame::comment("ping"));
        }
        frames
    }

    /// The response object of the terminal event, once that was sent; what a store keeps.
    pub fn response(&self) -> Option<&Value> {
        self.response.as_ref()
    }

    fn in_progress(&mut self, frames: &mut Vec<Frame>) {
        let object = response(&self.shape, "in_progress", Vec::new());
        self.emit("response.in_progress", json!({"response": object}), frames);
    }

    fn reasoning(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if text.is_empty() || !self.shape.shows_reasoning() {
            return;
        }
        if !matches!(&self.item, Some(item) if matches!(item.kind, Kind::Reasoning)) {
            self.add_item(OpenItem::reasoning(&self.shape), frames);
            let empty = OpenItem::reasoning(&self.shape);
            match self.shape.reasoning {
                ReasoningDisplay::Summary => self.emit_part(
                    "response.reasoning_summary_part.added",
                    "summary_index",
                    json!({"part": empty.summary_part()}),
                    frames,
                ),
                ReasoningDisplay::Text => self.emit_part(
                    "response.content_part.added",
                    "content_index",
                    json!({"part": empty.reasoning_part()}),
                    frames,
                ),
                ReasoningDisplay::Hidden => {}
            }
        }
        self.grow(text);
        let delta = json!({"delta": text});
        match self.shape.reasoning {
            ReasoningDisplay::Summary => self.emit_part(
                "response.reasoning_summary_text.delta",
                "summary_index",
                delta,
                frames,
            ),
            ReasoningDisplay::Text => self.emit_part(
                "response.reasoning_text.delta",
                "content_index",
                delta,
                frames,
            ),
            ReasoningDisplay::Hidden => {}
        }
    }

    fn content(&mut self, text: &str, tokens: &[TokenLogprob], frames: &mut Vec<Frame>) {
        if text.is_empty() {
            return;
        }
        if !matches!(&self.item, Some(item) if matches!(item.kind, Kind::Message)) {
            self.add_message(frames);
        }
        self.grow(text);
        let logprobs: Vec<Value> = match self.shape.logprobs {
            true => tokens.iter().map(logprobs::entry).collect(),
            false => Vec::new(),
        };
        if let Some(item) = &mut self.item {
            item.logprobs.extend(logprobs.iter().cloned());
        }
        self.emit_part(
            "response.output_text.delta",
            "content_index",
            json!({"delta": text, "logprobs": logprobs}),
            frames,
        );
    }

    fn add_message(&mut self, frames: &mut Vec<Frame>) {
        let item = OpenItem::message(&self.shape);
        let part = item.text_part();
        self.add_item(item, frames);
        self.emit_part(
            "response.content_part.added",
            "content_index",
            json!({"part": part}),
            frames,
        );
    }

    fn tool_start(&mut self, call_id: &str, name: &str, frames: &mut Vec<Frame>) {
        let item = OpenItem::call(call_id, name, &self.shape);
        match item.is_shown(Status::InProgress) {
            true => self.add_item(item, frames),
            // Added when its arguments are complete.
            false => {
                self.close_item(Status::Completed, frames);
                self.item = Some(item);
            }
        }
    }

    fn arguments(&mut self, text: &str, frames: &mut Vec<Frame>) {
        self.grow(text);
        let Some(OpenItem {
            kind: Kind::Call { origin, input, .. },
            ..
        }) = &mut self.item
        else {
            return;
        };
        if origin.is_custom() {
            let delta = input.push(text);
            self.emit_delta("response.custom_tool_call_input.delta", &delta, frames);
        } else if origin.streams() {
            self.emit_delta("response.function_call_arguments.delta", text, frames);
        }
    }

    fn finish(&mut self, outcome: &Outcome, frames: &mut Vec<Frame>) {
        let open_status = last_status(&outcome.finish);
        // A call is closed by its end and by nothing else: what is open now was cut off.
        let status = match self.item {
            Some(OpenItem {
                kind: Kind::Call { .. },
                ..
            }) => Status::Incomplete,
            _ => open_status,
        };
        self.close_item(status, frames);
        if self.output.is_empty() && outcome.calls.is_empty() {
            self.add_message(frames);
            self.close_item(open_status, frames);
        }
        let object = finished_response(outcome, self.output.clone(), &self.shape);
        let name = match object["status"].as_str() {
            Some("completed") => "response.completed",
            _ => "response.incomplete",
        };
        self.end(name, object, frames);
    }

    /// The open item stays open: arguments whose JSON is not closed cannot be run by accident.
    fn fail(&mut self, failure: &Failure, frames: &mut Vec<Frame>) {
        let code = error_code(failure.kind);
        if !self.opened {
            let members = json!({"code": code, "message": failure.message, "param": failure.param});
            self.emit("error", members, frames);
            self.ended = true;
            return;
        }
        let mut object = response(&self.shape, "failed", self.output.clone());
        object["error"] = json!({"code": code, "message": failure.message});
        self.end("response.failed", object, frames);
    }

    fn end(&mut self, name: &'static str, object: Value, frames: &mut Vec<Frame>) {
        self.emit(name, json!({"response": object}), frames);
        self.response = Some(object);
        self.ended = true;
    }

    fn grow(&mut self, text: &str) {
        if let Some(item) = &mut self.item {
            item.text.push_str(text);
        }
    }

    fn add_item(&mut self, item: OpenItem, frames: &mut Vec<Frame>) {
        self.close_item(Status::Completed, frames);
        let value = item.value(&self.shape, Status::InProgress);
        let members = json!({"output_index": self.output.len(), "item": value});
        self.emit("response.output_item.added", members, frames);
        self.item = Some(item);
    }

    fn close_item(&mut self, status: Status, frames: &mut Vec<Frame>) {
        let Some(mut item) = self.item.take() else {
            return;
        };
        if !item.is_shown(status) {
            return;
        }
        if !item.is_shown(Status::InProgress) {
            let mut value = item.value(&self.shape, status);
            value["status"] = Status::InProgress.name().into();
            let members = json!({"output_index": self.output.len(), "item": value});
            self.emit("response.output_item.added", members, frames);
        }
        self.item = Some(item.clone());
        match &mut item.kind {
            Kind::Reasoning => self.close_reasoning(&item, frames),
            Kind::Message => {
                let done = json!({"text": item.text, "logprobs": item.logprobs});
                self.emit_part("response.output_text.done", "content_index", done, frames);
                self.emit_part(
                    "response.content_part.done",
                    "content_index",
                    json!({"part": item.text_part()}),
                    frames,
                );
            }
            Kind::Call {
                name,
                origin,
                input,
                ..
            } if status == Status::Completed => {
                if origin.is_custom() {
                    let rest = input.finish(&item.text);
                    self.emit_delta("response.custom_tool_call_input.delta", &rest, frames);
                    let done = json!({"input": input.text()});
                    self.emit_item("response.custom_tool_call_input.done", done, frames);
                } else if origin.streams() {
                    let done = json!({"name": origin.client_name(name), "arguments": item.text});
                    self.emit_item("response.function_call_arguments.done", done, frames);
                }
            }
            Kind::Call { .. } => {}
        }
        let value = item.value(&self.shape, status);
        let members = json!({"output_index": self.output.len(), "item": value});
        self.emit("response.output_item.done", members, frames);
        self.output.push(value);
        self.item = None;
    }

    fn close_reasoning(&mut self, item: &OpenItem, frames: &mut Vec<Frame>) {
        let text = json!({"text": item.text});
        match self.shape.reasoning {
            ReasoningDisplay::Summary => {
                self.emit_part(
                    "response.reasoning_summary_text.done",
                    "summary_index",
                    text,
                    frames,
                );
                self.emit_part(
                    "response.reasoning_summary_part.done",
                    "summary_index",
                    json!({"part": item.summary_part()}),
                    frames,
                );
            }
            ReasoningDisplay::Text => {
                self.emit_part(
                    "response.reasoning_text.done",
                    "content_index",
                    text,
                    frames,
                );
                self.emit_part(
                    "response.content_part.done",
                    "content_index",
                    json!({"part": item.reasoning_part()}),
                    frames,
                );
            }
            ReasoningDisplay::Hidden => {}
        }
    }

    /// An event about the open item; one without text is not worth sending.
    fn emit_delta(&mut self, name: &'static str, delta: &str, frames: &mut Vec<Frame>) {
        if !delta.is_empty() {
            self.emit_item(name, json!({"delta": delta}), frames);
        }
    }

    /// An event about the only part of the open item.
    fn emit_part(
        &mut self,
        name: &'static str,
        index: &'static str,
        members: Value,
        frames: &mut Vec<Frame>,
    ) {
        let mut all = Map::new();
        all.insert(index.to_owned(), 0.into());
        extend(&mut all, members);
        self.emit_item(name, all.into(), frames);
    }

    /// An event about the open item.
    fn emit_item(&mut self, name: &'static str, members: Value, frames: &mut Vec<Frame>) {
        let mut all = Map::new();
        let id = self.item.as_ref().map(|item| item.id.as_str());
        all.insert("item_id".to_owned(), id.into());
        all.insert("output_index".to_owned(), self.output.len().into());
        extend(&mut all, members);
        self.emit(name, all.into(), frames);
    }

    fn emit(&mut self, name: &'static str, members: Value, frames: &mut Vec<Frame>) {
        let mut event = Map::new();
        event.insert("type".to_owned(), name.into());
        event.insert("sequence_number".to_owned(), self.n_events.into());
        extend(&mut event, members);
        self.n_events += 1;
        frames.push(Frame::event(name, &event.into()));
    }
}

fn extend(event: &mut Map<String, Value>, members: Value) {
    if let Value::Object(members) = members {
        event.extend(members);
    }
}

/// The code of an error inside a stream; agents know what to do about these three.
fn error_code(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::ContextOverflow { .. } => "context_length_exceeded",
        FailureKind::Overloaded => "rate_limit_exceeded",
        _ => "server_error",
    }
}
