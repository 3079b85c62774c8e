//! Replies as one message with its reasoning and calls: a whole object, or the chunks that add
//! up to it.

use std::collections::BTreeSet;
use std::time::Duration;

use ds4_text::markers::{THINK_CLOSE, THINK_OPEN};
use serde_json::{Map, Value, json};

use crate::api::choices::{Chunks, Envelope, UsageReport};
use crate::api::logprobs::{self, Logprobs};
use crate::api::responses::raw_input;
use crate::api::{Frame, Ping};
use crate::generation::{Call, Failure, Finish, Outcome, ReplyEvent, TokenLogprob};

const MESSAGE: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";

/// What becomes of the reasoning in a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningDisplay {
    /// A member `reasoning_content`.
    #[default]
    ReasoningContent,
    /// A member `reasoning`.
    Reasoning,
    /// Both members, for clients of which nobody knows which one they read.
    Both,
    /// In the content, between think tags.
    Inline,
    /// Nothing.
    Hidden,
}

impl ReasoningDisplay {
    fn members(self) -> &'static [&'static str] {
        match self {
            ReasoningDisplay::ReasoningContent => &["reasoning_content"],
            ReasoningDisplay::Reasoning => &["reasoning"],
            ReasoningDisplay::Both => &["reasoning_content", "reasoning"],
            ReasoningDisplay::Inline | ReasoningDisplay::Hidden => &[],
        }
    }
}

/// What an encoder needs to know of the request and of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyShape {
    /// What every object says; its id is `chatcmpl-` and random hex digits.
    pub envelope: Envelope,
    /// Where a stream tells what it used.
    pub usage: UsageReport,
    /// How a stream says that it is alive.
    pub ping: Ping,
    /// What becomes of the reasoning.
    pub reasoning: ReasoningDisplay,
    /// Whether to list the log probabilities of the text.
    pub logprobs: bool,
    /// Whether a stream tells how much of the prompt is done.
    pub progress: bool,
    /// Whether the stop string that ended the content is part of it.
    pub shows_stop: bool,
    /// Tools whose calls carry raw text.
    pub custom_tools: BTreeSet<String>,
}

impl ReplyShape {
    /// That of one of several choices.
    pub(crate) fn of_choice(&self, choice: usize) -> ReplyShape {
        ReplyShape {
            envelope: self.envelope.of_choice(choice),
            ..self.clone()
        }
    }
}

/// The body of an answer to `/v1/chat/completions/input_tokens`.
pub fn token_count(n_prompt: usize) -> Value {
    crate::api::responses::token_count(n_prompt)
}

/// The body of a reply that is not streamed.
///
/// `logprobs` are those of its events, where the client asked for them. A cancelled reply has no
/// body of its own: the answer is an error object.
pub fn complete(outcome: &Outcome, logprobs: &Logprobs, shape: &ReplyShape) -> Value {
    let calls: Vec<Value> = outcome
        .calls
        .iter()
        .filter_map(|call| tool_call(call, shape))
        .collect();
    let is_dropped = !outcome.calls.is_empty() && is_blank(&outcome.content);
    let mut content = String::new();
    let mut content_logprobs: Vec<&TokenLogprob> = Vec::new();
    if shape.reasoning == ReasoningDisplay::Inline && !outcome.reasoning.is_empty() {
        for part in [THINK_OPEN, &outcome.reasoning, THINK_CLOSE] {
            content.push_str(part);
        }
        content_logprobs.extend(&logprobs.reasoning);
    }
    if !is_dropped {
        content.push_str(&outcome.content);
        content_logprobs.extend(&logprobs.content);
    }
    content.push_str(shown_stop(outcome, shape));

    let mut message = Map::new();
    let mut put = |name: &str, value: Value| {
        message.insert(name.to_owned(), value);
    };
    put("role", "assistant".into());
    put(
        "content",
        match content.is_empty() && !calls.is_empty() {
            true => Value::Null,
            false => content.into(),
        },
    );
    if !outcome.reasoning.is_empty() {
        for name in shape.reasoning.members() {
            put(name, outcome.reasoning.as_str().into());
        }
    }
    put("refusal", Value::Null);
    if !calls.is_empty() {
        put("tool_calls", calls.into());
    }
    let mut listed = Value::Null;
    if shape.logprobs {
        let of_reasoning: Vec<&TokenLogprob> = match shape.reasoning.members() {
            [] => Vec::new(),
            _ => logprobs.reasoning.iter().collect(),
        };
        listed = logprob_lists(&of_reasoning, &content_logprobs);
    }
    let choice = json!({"index": 0, "message": message, "logprobs": listed});
    shape.envelope.complete(MESSAGE, choice, outcome)
}

/// A call that was cut off stands with the arguments it has. Raw text has no closing bracket that
/// would tell a whole input from half of one, so a cut call of a custom tool is left out.
fn tool_call(call: &Call, shape: &ReplyShape) -> Option<Value> {
    if !shape.custom_tools.contains(&call.name) {
        return Some(json!({
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }));
    }
    let input = raw_input(&call.arguments);
    call.complete.then(|| {
        json!({
            "id": call.id,
            "type": "custom",
            "custom": {"name": call.name, "input": input},
        })
    })
}

/// What of a stop string stands in the content.
fn shown_stop<'a>(outcome: &'a Outcome, shape: &ReplyShape) -> &'a str {
    match &outcome.finish {
        Finish::StopString(text) if shape.shows_stop => text,
        _ => "",
    }
}

/// Only white space, or nothing. Before a call it is not worth sending: agents drop it from the
/// history, and what they send back then differs from what they got.
fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

/// The `logprobs` member of a choice; null where there is no token.
fn logprob_lists(reasoning: &[&TokenLogprob], content: &[&TokenLogprob]) -> Value {
    let list = |tokens: &[&TokenLogprob]| -> Value {
        match tokens {
            [] => Value::Null,
            tokens => tokens.iter().map(|token| logprobs::entry(token)).collect(),
        }
    };
    if reasoning.is_empty() && content.is_empty() {
        return Value::Null;
    }
    let mut lists = json!({"content": list(content), "refusal": null});
    if !reasoning.is_empty() {
        lists["reasoning_content"] = list(reasoning);
    }
    lists
}

/// A call of a custom tool while its arguments are written. It has no shape before they are
/// complete.
#[derive(Clone, Debug)]
struct CustomCall {
    call: Call,
    index: usize,
}

/// Writes the chunks of one reply.
///
/// The stream ends with exactly one `[DONE]` behind a finish reason, or one error; whatever comes
/// after is answered with nothing. Clients join every string of a call, so ids, names and types
/// are sent once.
#[derive(Clone, Debug)]
pub struct Stream {
    chunks: Chunks,
    shape: ReplyShape,
    opened: bool,
    /// Whether content stands between think tags.
    in_think_tags: bool,
    /// Content that is blank so far and is sent when text follows, or nothing.
    blank: String,
    blank_logprobs: Vec<TokenLogprob>,
    has_content: bool,
    has_calls: bool,
    custom: Option<CustomCall>,
}

impl Stream {
    /// A stream that has sent nothing.
    pub fn new(shape: ReplyShape) -> Stream {
        Stream {
            chunks: Chunks::new(shape.envelope.clone(), CHUNK, shape.usage),
            shape,
            opened: false,
            in_think_tags: false,
            blank: String::new(),
            blank_logprobs: Vec::new(),
            has_content: false,
            has_calls: false,
            custom: None,
        }
    }

    /// The role, to be sent with the headers.
    pub fn open(&mut self) -> Vec<Frame> {
        if self.opened || self.chunks.has_ended() {
            return Vec::new();
        }
        self.opened = true;
        vec![self.chunk(json!({"role": "assistant", "content": ""}), Value::Null)]
    }

    /// What one event of the worker becomes.
    pub fn event(&mut self, event: &ReplyEvent) -> Vec<Frame> {
        if self.chunks.has_ended() {
            return Vec::new();
        }
        let mut frames = Vec::new();
        if !matches!(event, ReplyEvent::Failed(_)) {
            frames = self.open();
        }
        match event {
            ReplyEvent::Started { .. } | ReplyEvent::Progress { .. } => {
                let empty = self.choice(json!({}), Value::Null);
                let progress = self.chunks.progress(event, empty);
                frames.extend(progress.filter(|_| self.shape.progress));
            }
            ReplyEvent::Reasoning { text, logprobs } => {
                self.reasoning(text, logprobs, &mut frames);
            }
            ReplyEvent::Content { text, logprobs } => self.content(text, logprobs, &mut frames),
            ReplyEvent::ToolStart { index, id, name } => {
                self.tool_start(*index, id, name, &mut frames);
            }
            ReplyEvent::ToolArguments { index, text } => {
                self.arguments(*index, text, &mut frames);
            }
            ReplyEvent::ToolEnd { .. } => self.tool_end(&mut frames),
            ReplyEvent::Finished(outcome) => self.finish(outcome, &mut frames),
            ReplyEvent::Failed(failure) => self.fail(failure, &mut frames),
        }
        frames
    }

    /// A sign of life: agents hang up after minutes without a byte. `idle` is the time since the
    /// client was last sent anything.
    pub fn keep_alive(&mut self, _idle: Duration) -> Vec<Frame> {
        let empty = self.choice(json!({}), Value::Null);
        self.chunks.keep_alive(self.shape.ping, empty)
    }

    /// The end of a reply of several choices, which have all ended.
    pub fn close_all(&self, together: &Outcome) -> Vec<Frame> {
        self.chunks.close_all(together)
    }

    fn reasoning(&mut self, text: &str, logprobs: &[TokenLogprob], frames: &mut Vec<Frame>) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        let logprobs: Vec<&TokenLogprob> = logprobs.iter().collect();
        match self.shape.reasoning {
            ReasoningDisplay::Hidden => {}
            ReasoningDisplay::Inline => {
                let open = match std::mem::replace(&mut self.in_think_tags, true) {
                    true => "",
                    false => THINK_OPEN,
                };
                self.text(&format!("{open}{text}"), &logprobs, frames);
            }
            display => {
                let members = display.members().iter();
                let delta: Map<String, Value> = members
                    .map(|name| ((*name).to_owned(), text.into()))
                    .collect();
                let lists = logprob_lists(&logprobs, &[]);
                frames.push(self.chunk(delta.into(), lists));
            }
        }
    }

    fn content(&mut self, text: &str, logprobs: &[TokenLogprob], frames: &mut Vec<Frame>) {
        if self.has_content {
            self.close_think_tags(frames);
            let logprobs: Vec<&TokenLogprob> = logprobs.iter().collect();
            return self.text(text, &logprobs, frames);
        }
        self.blank.push_str(text);
        self.blank_logprobs.extend_from_slice(logprobs);
        if !is_blank(&self.blank) {
            self.held_content(frames);
        }
    }

    /// Sends the content held so far.
    fn held_content(&mut self, frames: &mut Vec<Frame>) {
        self.has_content = true;
        self.close_think_tags(frames);
        let text = std::mem::take(&mut self.blank);
        let logprobs = std::mem::take(&mut self.blank_logprobs);
        let logprobs: Vec<&TokenLogprob> = logprobs.iter().collect();
        self.text(&text, &logprobs, frames);
    }

    fn close_think_tags(&mut self, frames: &mut Vec<Frame>) {
        if std::mem::take(&mut self.in_think_tags) {
            self.text(THINK_CLOSE, &[], frames);
        }
    }

    fn text(&self, text: &str, logprobs: &[&TokenLogprob], frames: &mut Vec<Frame>) {
        if !text.is_empty() || !logprobs.is_empty() {
            let lists = logprob_lists(&[], logprobs);
            frames.push(self.chunk(json!({"content": text}), lists));
        }
    }

    fn tool_start(&mut self, index: usize, id: &str, name: &str, frames: &mut Vec<Frame>) {
        self.has_calls = true;
        self.close_think_tags(frames);
        let call = Call {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: String::new(),
            complete: true,
        };
        if self.shape.custom_tools.contains(name) {
            self.custom = Some(CustomCall { call, index });
            return;
        }
        self.custom = None;
        self.tool_call(index, tool_call(&call, &self.shape), frames);
    }

    fn arguments(&mut self, index: usize, text: &str, frames: &mut Vec<Frame>) {
        if let Some(custom) = &mut self.custom {
            custom.call.arguments.push_str(text);
        } else if !text.is_empty() {
            let delta = json!({"function": {"arguments": text}});
            self.tool_call(index, Some(delta), frames);
        }
    }

    fn tool_end(&mut self, frames: &mut Vec<Frame>) {
        if let Some(CustomCall { call, index }) = self.custom.take() {
            self.tool_call(index, tool_call(&call, &self.shape), frames);
        }
    }

    fn tool_call(&self, index: usize, call: Option<Value>, frames: &mut Vec<Frame>) {
        let Some(Value::Object(members)) = call else {
            return;
        };
        let mut delta = Map::new();
        delta.insert("index".to_owned(), index.into());
        delta.extend(members);
        frames.push(self.chunk(json!({"tool_calls": [delta]}), Value::Null));
    }

    fn finish(&mut self, outcome: &Outcome, frames: &mut Vec<Frame>) {
        if !self.has_content && !self.has_calls {
            self.held_content(frames);
        }
        self.close_think_tags(frames);
        self.text(shown_stop(outcome, &self.shape), &[], frames);
        let empty = self.choice(json!({}), Value::Null);
        self.chunks.finish(outcome, empty, frames);
    }

    /// Calls stay open: arguments whose JSON is not closed cannot be run by accident.
    fn fail(&mut self, failure: &Failure, frames: &mut Vec<Frame>) {
        self.chunks.fail(failure, frames);
    }

    fn choice(&self, delta: Value, logprobs: Value) -> Value {
        let mut choice = json!({"index": 0, "delta": delta});
        if self.shape.logprobs {
            choice["logprobs"] = logprobs;
        }
        choice
    }

    fn chunk(&self, delta: Value, logprobs: Value) -> Frame {
        self.chunks.choice(self.choice(delta, logprobs))
    }
}
