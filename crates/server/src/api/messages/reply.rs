//! Replies as content blocks: one JSON object, or the events that add up to it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::Frame;
use crate::api::error;
use crate::generation::{Call, Failure, FailureKind, Finish, Outcome, ReplyEvent, Usage};

/// What becomes of the reasoning in a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThinkingDisplay {
    /// A thinking block with the text.
    #[default]
    Shown,
    /// A thinking block with nothing but the signature.
    Omitted,
    /// No thinking block.
    Hidden,
}

/// What an encoder needs to know of the request and of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyShape {
    /// The message's id: `msg_` and random hex digits.
    pub id: String,
    /// The model name to echo.
    pub model: String,
    /// Id of the HTTP request; stands in an error event.
    pub request_id: String,
    /// What becomes of the reasoning.
    pub thinking: ThinkingDisplay,
    /// Opaque handle on the turn, the signature of its thinking block. The client sends it
    /// back untouched.
    pub signature: String,
    /// What of the request is not done.
    pub warnings: Vec<String>,
}

/// The body of a reply that is not streamed.
///
/// A call that was cut off is left out. A cancelled reply has no body of its own: the answer is
/// an error object.
pub fn complete(outcome: &Outcome, shape: &ReplyShape) -> Value {
    let Some(stop) = StopReason::of(&outcome.finish) else {
        return error::anthropic(&cancelled(), &shape.request_id);
    };
    let mut content = Vec::new();
    if !outcome.reasoning.is_empty() && shape.thinking != ThinkingDisplay::Hidden {
        let shown = shape.thinking == ThinkingDisplay::Shown;
        content.push(json!({
            "type": "thinking",
            "thinking": if shown { outcome.reasoning.as_str() } else { "" },
            "signature": shape.signature,
        }));
    }
    let has_text = match outcome.calls.is_empty() {
        true => !outcome.content.is_empty(),
        false => !is_blank(&outcome.content),
    };
    if has_text {
        content.push(json!({"type": "text", "text": outcome.content}));
    }
    let n_before_calls = content.len();
    content.extend(
        outcome
            .calls
            .iter()
            .filter(|call| call.complete)
            .map(tool_use),
    );
    if !has_text && content.len() == n_before_calls {
        // Agents look at the first block without asking whether there is one.
        content.push(json!({"type": "text", "text": ""}));
    }
    let mut message = json!({
        "id": shape.id,
        "type": "message",
        "role": "assistant",
        "model": shape.model,
        "content": content,
        "stop_reason": stop.reason,
        "stop_sequence": stop.sequence,
        "usage": final_usage(&outcome.usage),
    });
    put_warnings(&mut message, shape);
    message
}

/// The model's message as a client that sends it back has it, with all of its reasoning.
pub fn said(outcome: &Outcome, shape: &ReplyShape) -> Value {
    let shape = ReplyShape {
        thinking: ThinkingDisplay::Shown,
        ..shape.clone()
    };
    let mut message = complete(outcome, &shape);
    json!({"role": "assistant", "content": message["content"].take()})
}

fn put_warnings(message: &mut Value, shape: &ReplyShape) {
    if !shape.warnings.is_empty() {
        message["warnings"] = shape.warnings.clone().into();
    }
}

/// The body of an answer to `/v1/messages/count_tokens`.
pub fn token_count(n_prompt: usize) -> Value {
    json!({"input_tokens": n_prompt})
}

/// The id by which a client of this API knows a call: `toolu_` in place of `call_`.
pub fn tool_use_id(call_id: &str) -> String {
    match call_id.strip_prefix("call_") {
        Some(digits) => format!("toolu_{digits}"),
        None => call_id.to_owned(),
    }
}

/// The call id behind an id of [`tool_use_id`]; an id that is not one of ours stays as it is.
pub fn call_id(tool_use_id: &str) -> String {
    match tool_use_id.strip_prefix("toolu_") {
        Some(digits) if is_our_digits(digits) => format!("call_{digits}"),
        _ => tool_use_id.to_owned(),
    }
}

/// 32 lower-case hex digits.
fn is_our_digits(digits: &str) -> bool {
    digits.len() == 32
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Only white space, or nothing. Two of the four agents we know drop such a text from the
/// history, so it is not worth a block of its own before a call.
fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

fn tool_use(call: &Call) -> Value {
    let input = match ds4_text::json::parse(&call.arguments) {
        Ok(Value::Object(members)) => Value::Object(members),
        _ => json!({"arguments": call.arguments}),
    };
    json!({"type": "tool_use", "id": tool_use_id(&call.id), "name": call.name, "input": input})
}

struct StopReason<'a> {
    reason: &'static str,
    sequence: Option<&'a str>,
}

impl StopReason<'_> {
    /// `None` for a reply that the client does not get to the end.
    fn of(finish: &Finish) -> Option<StopReason<'_>> {
        let reason = match finish {
            Finish::Stop => "end_turn",
            Finish::StopString(text) => {
                return Some(StopReason {
                    reason: "stop_sequence",
                    sequence: Some(text),
                });
            }
            Finish::ToolCalls => "tool_use",
            Finish::Length => "max_tokens",
            Finish::ContextFull => "model_context_window_exceeded",
            Finish::Cancelled => return None,
        };
        Some(StopReason {
            reason,
            sequence: None,
        })
    }
}

/// The three input members add up to the prompt, because clients show their sum as context use.
fn input_usage(n_prompt: usize, n_cached: usize) -> Value {
    json!({
        "input_tokens": n_prompt.saturating_sub(n_cached),
        "cache_read_input_tokens": n_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": 0,
    })
}

fn final_usage(usage: &Usage) -> Value {
    let mut members = input_usage(usage.n_prompt, usage.n_cached);
    members["output_tokens"] = usage.n_generated.into();
    members["output_tokens_details"] = json!({"thinking_tokens": usage.n_reasoning});
    members
}

fn cancelled() -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: "The request was cancelled before its reply was complete.".to_owned(),
        param: None,
    }
}

/// The block that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    ToolUse { has_arguments: bool },
}

/// Writes the events of one reply.
///
/// Blocks follow each other, numbered from 0. The stream ends with exactly one `message_stop` or
/// `error`; whatever comes after is answered with nothing.
#[derive(Clone, Debug)]
pub struct Stream {
    shape: ReplyShape,
    started: bool,
    ended: bool,
    block: Option<Block>,
    n_blocks: usize,
    /// Whether a text or a call was sent.
    has_answer: bool,
    /// Content that is blank so far and becomes a block when something follows.
    blank: String,
}

impl Stream {
    /// A stream that has sent nothing.
    pub fn new(shape: ReplyShape) -> Stream {
        Stream {
            shape,
            started: false,
            ended: false,
            block: None,
            n_blocks: 0,
            has_answer: false,
            blank: String::new(),
        }
    }

    /// Nothing: `message_start` tells what was cached, and waits for [`ReplyEvent::Started`].
    pub fn open(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    /// What one event of the worker becomes.
    pub fn event(&mut self, event: &ReplyEvent) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.ended {
            return frames;
        }
        match event {
            ReplyEvent::Started {
                n_prompt, n_cached, ..
            } => {
                self.start(*n_prompt, *n_cached, &mut frames);
            }
            ReplyEvent::Progress { .. } => {}
            ReplyEvent::Reasoning { text, .. } => self.reasoning(text, &mut frames),
            ReplyEvent::Content { text, .. } => self.content(text, &mut frames),
            ReplyEvent::ToolStart { id, name, .. } => {
                self.blank.clear();
                self.has_answer = true;
                let block = json!({
                    "type": "tool_use",
                    "id": tool_use_id(id),
                    "name": name,
                    "input": {},
                });
                let has_arguments = false;
                self.open_block(Block::ToolUse { has_arguments }, block, &mut frames);
            }
            ReplyEvent::ToolArguments { text, .. } => self.arguments(text, &mut frames),
            ReplyEvent::ToolEnd { .. } => {
                if self.block
                    == Some(Block::ToolUse {
                        has_arguments: false,
                    })
                {
                    self.arguments("{}", &mut frames);
                }
                self.close_block(&mut frames);
            }
            ReplyEvent::Finished(outcome) => self.finish(outcome, &mut frames),
            ReplyEvent::Failed(failure) => self.fail(failure, &mut frames),
        }
        frames
    }

    /// A ping: agents hang up after minutes without a byte, also while they wait in the queue.
    /// `idle` is the time since the client was last sent anything.
    pub fn keep_alive(&mut self, _idle: Duration) -> Vec<Frame> {
        match self.ended {
            true => Vec::new(),
            false => vec![frame(&json!({"type": "ping"}))],
        }
    }

    fn start(&mut self, n_prompt: usize, n_cached: usize, frames: &mut Vec<Frame>) {
        if self.started {
            return;
        }
        self.started = true;
        let mut message = json!({
            "id": self.shape.id,
            "type": "message",
            "role": "assistant",
            "model": self.shape.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": input_usage(n_prompt, n_cached),
        });
        put_warnings(&mut message, &self.shape);
        frames.push(frame(&json!({"type": "message_start", "message": message})));
    }

    fn reasoning(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if text.is_empty() || self.shape.thinking == ThinkingDisplay::Hidden {
            return;
        }
        if self.block != Some(Block::Thinking) {
            let block = json!({"type": "thinking", "thinking": "", "signature": ""});
            self.open_block(Block::Thinking, block, frames);
        }
        if self.shape.thinking == ThinkingDisplay::Shown {
            self.delta(json!({"type": "thinking_delta", "thinking": text}), frames);
        }
    }

    fn content(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if self.block == Some(Block::Text) {
            if !text.is_empty() {
                self.delta(json!({"type": "text_delta", "text": text}), frames);
            }
            return;
        }
        self.blank.push_str(text);
        if !is_blank(&self.blank) {
            self.text_block(frames);
        }
    }

    /// Opens a text block with the content held so far.
    fn text_block(&mut self, frames: &mut Vec<Frame>) {
        self.has_answer = true;
        self.open_block(Block::Text, json!({"type": "text", "text": ""}), frames);
        let text = std::mem::take(&mut self.blank);
        if !text.is_empty() {
            self.delta(json!({"type": "text_delta", "text": text}), frames);
        }
    }

    fn arguments(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if let Some(Block::ToolUse { has_arguments }) = &mut self.block
            && !text.is_empty()
        {
            *has_arguments = true;
            self.delta(
                json!({"type": "input_json_delta", "partial_json": text}),
                frames,
            );
        }
    }

    fn finish(&mut self, outcome: &Outcome, frames: &mut Vec<Frame>) {
        let Some(stop) = StopReason::of(&outcome.finish) else {
            return self.fail(&cancelled(), frames);
        };
        self.start(outcome.usage.n_prompt, outcome.usage.n_cached, frames);
        if !self.has_answer {
            self.text_block(frames);
        }
        self.close_block(frames);
        frames.push(frame(&json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop.reason, "stop_sequence": stop.sequence},
            "usage": final_usage(&outcome.usage),
        })));
        frames.push(frame(&json!({"type": "message_stop"})));
        self.ended = true;
    }

    /// Blocks stay open: arguments whose JSON is not closed cannot be run by accident.
    fn fail(&mut self, failure: &Failure, frames: &mut Vec<Frame>) {
        frames.push(frame(&error::anthropic(failure, &self.shape.request_id)));
        self.ended = true;
    }

    fn open_block(&mut self, block: Block, content_block: Value, frames: &mut Vec<Frame>) {
        self.close_block(frames);
        frames.push(frame(&json!({
            "type": "content_block_start",
            "index": self.n_blocks,
            "content_block": content_block,
        })));
        self.block = Some(block);
    }

    fn delta(&self, delta: Value, frames: &mut Vec<Frame>) {
        frames.push(frame(&json!({
            "type": "content_block_delta",
            "index": self.n_blocks,
            "delta": delta,
        })));
    }

    fn close_block(&mut self, frames: &mut Vec<Frame>) {
        let Some(block) = self.block.take() else {
            return;
        };
        if block == Block::Thinking {
            let signature = &self.shape.signature;
            self.delta(
                json!({"type": "signature_delta", "signature": signature}),
                frames,
            );
        }
        frames.push(frame(
            &json!({"type": "content_block_stop", "index": self.n_blocks}),
        ));
        self.n_blocks += 1;
    }
}

/// An event whose name is its `type`. Clients skip events without a name.
fn frame(event: &Value) -> Frame {
    Frame::event(event["type"].as_str().unwrap_or_default(), event)
}
