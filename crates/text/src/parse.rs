//! The model's text to reasoning, content and tool calls, while it arrives.
//!
//! On well-formed text the parser agrees with [`crate::parse_strict`]. On the text that models
//! also write (other spellings of the markup, missing closers, a call inside the reasoning) it
//! recovers where that cannot turn text into a call by accident, and otherwise says what is
//! malformed. However the text is cut into chunks, the deltas of each kind add up to the same and
//! the reply is the same; what a later character could still reclassify is held back.

mod reply;
mod tools;
mod value;

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::dsml::{
    PARAMETER_CLOSE, PARAMETER_CLOSE_ESCAPED, QUOTE_ESCAPED, Scan, Tag, TagKind, TagScanner,
};
use crate::json;
use crate::markers::{THINK_CLOSE, THINK_OPEN};
use value::{JsonText, json_value};

pub use reply::{EndReason, Event, ParsedCall, Phase, Reply, Start};
pub use tools::ToolSchemas;

/// White space between a block's opening tag and its first call, beyond which the tag is text.
const MAX_LOOKAHEAD_BLANKS: usize = 4096;
/// Newlines that rendering puts before a block, and that belong to it when read back.
const BLOCK_NEWLINES: usize = 2;

const UNEXPECTED_TEXT: &str = "unexpected text in tool block";
const EMPTY_BLOCK: &str = "empty tool block";

/// Reads one reply.
#[derive(Clone, Debug)]
pub struct ReplyParser {
    tools: ToolSchemas,
    lenient_plain_xml: bool,
    state: State,
    /// Text that is not decided yet, behind `at` bytes that are.
    held: String,
    at: usize,
    /// Bytes from `at` on that have been looked at and hold no `<` that may matter.
    looked: usize,
    /// What is known of the `<` that follows them.
    ahead: Ahead,
    /// Bytes of the whole text before `held`.
    n_done: usize,
    events: Vec<Event>,
    reply: Reply,
    /// Whether the reply's reasoning is more than white space.
    has_reasoned: bool,
}

#[derive(Clone, Debug)]
enum State {
    Text(Text),
    /// In a block, outside a call.
    Block {
        plain: bool,
    },
    /// In a call, outside a parameter.
    Call(Call),
    Value(Call, ParameterValue),
    /// In arguments that are written as one JSON object.
    Body(Call, JsonText),
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Text {
    channel: Channel,
    /// Whether there was nothing but white space so far.
    blank: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Channel {
    Reasoning,
    Content,
}

/// The last call of the reply while it is read.
#[derive(Clone, Debug, Default)]
struct Call {
    /// Whether the block is written without `DSML`.
    plain: bool,
    keys: HashSet<String>,
    /// A first parameter that holds all arguments if no other follows it.
    wrapped: Option<Wrapped>,
}

/// A parameter whose value looks like the whole arguments.
#[derive(Clone, Debug)]
struct Wrapped {
    key: String,
    value: String,
    members: Map<String, Value>,
}

#[derive(Clone, Debug)]
struct ParameterValue {
    key: String,
    kind: ValueKind,
}

#[derive(Clone, Debug)]
enum ValueKind {
    /// Streamed.
    Text,
    /// Kept until its end.
    Json(JsonText),
    /// Thrown away.
    Repeated,
}

/// What is known of a `<` in running text.
#[derive(Clone, Debug, Default)]
struct Ahead {
    first: TagScanner,
    /// The block's opening tag, when a call must follow before it counts.
    opener: Option<Tag>,
    second_at: usize,
    second: TagScanner,
}

/// What a `<` in running text is.
enum Decision {
    More,
    Literal,
    ThinkOpen,
    ThinkClose,
    /// The block begins; its first `skip` bytes are read.
    Block {
        skip: usize,
        plain: bool,
    },
}

impl ReplyParser {
    /// A parser at the beginning of a reply to a request that declared `tools`.
    pub fn new(start: Start, tools: ToolSchemas) -> ReplyParser {
        let (channel, blank) = match start {
            Start::Reasoning => (Channel::Reasoning, true),
            Start::Content => (Channel::Content, true),
            Start::WithinReasoning => (Channel::Reasoning, false),
            Start::WithinContent => (Channel::Content, false),
        };
        ReplyParser {
            tools,
            lenient_plain_xml: false,
            state: State::Text(Text { channel, blank }),
            held: String::new(),
            at: 0,
            looked: 0,
            ahead: Ahead::default(),
            n_done: 0,
            events: Vec::new(),
            reply: Reply::default(),
            has_reasoned: start == Start::WithinReasoning,
        }
    }

    /// Also reads blocks written without the DSML marker (`<tool_calls>`), which looks the same
    /// as legitimate XML.
    pub fn lenient_plain_xml(mut self, lenient: bool) -> ReplyParser {
        self.lenient_plain_xml = lenient;
        self
    }

    /// Where the end of the text read so far stands.
    pub fn phase(&self) -> Phase {
        // An undecided tag is markup as soon as its word is there.
        if self.rest()[self.looked..].contains("DSML") {
            return Phase::Markup;
        }
        match &self.state {
            State::Text(text) if text.channel == Channel::Reasoning => Phase::Reasoning,
            State::Text(_) => Phase::Content,
            State::Block { .. } | State::Call(_) => Phase::Markup,
            State::Value(
                _,
                ParameterValue {
                    kind: ValueKind::Json(json),
                    ..
                },
            )
            | State::Body(_, json)
                if !json.in_string =>
            {
                Phase::Markup
            }
            State::Value(..) | State::Body(..) => Phase::Value,
            State::Done => Phase::Done,
        }
    }

    /// Whether a block of calls has begun and has not ended.
    pub fn is_in_block(&self) -> bool {
        !matches!(self.state, State::Text(_) | State::Done)
    }

    /// Reads more text and returns what became known.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        if matches!(self.state, State::Done) {
            self.n_done += text.len();
            return Vec::new();
        }
        self.held.push_str(text);
        self.read(false);
        self.held.drain(..self.at);
        self.n_done += self.at;
        self.at = 0;
        std::mem::take(&mut self.events)
    }

    /// Ends the text; returns the last events and the whole reply.
    pub fn finish(mut self, end: EndReason) -> (Vec<Event>, Reply) {
        self.read(true);
        let stopped = end == EndReason::Stop;
        let in_tag = self.rest().trim_start().starts_with('<');
        match std::mem::replace(&mut self.state, State::Done) {
            State::Text(_) | State::Done => {}
            _ if !stopped => {}
            State::Block { .. } | State::Call(_) if in_tag => {
                self.malformed("truncated inside a tag");
            }
            State::Block { .. } if self.reply.tool_calls.is_empty() => {
                self.malformed(EMPTY_BLOCK);
            }
            State::Block { .. } => {}
            State::Call(mut call) => {
                self.write_wrapped(&mut call, true);
                let has = |key: &str| call.keys.contains(key);
                match self.tools.missing_key(self.call_name(), has) {
                    None => {
                        self.end_call(call.plain);
                    }
                    Some(key) => {
                        let detail = format!("truncated before the required parameter {key:?}");
                        self.malformed(&detail);
                    }
                }
            }
            State::Value(..) | State::Body(..) => {
                self.malformed("truncated inside a parameter value");
            }
        }
        (self.events, self.reply)
    }

    /// Decides as much of the held text as can be; all of it when the text has `ended` and is
    /// reasoning or content.
    fn read(&mut self, ended: bool) {
        loop {
            let state = std::mem::replace(&mut self.state, State::Done);
            let (next, go_on) = match state {
                State::Text(text) => self.read_text(text, ended),
                State::Block { plain } => self.read_block(plain),
                State::Call(call) => self.read_call(call),
                State::Value(call, value) => self.read_value(call, value),
                State::Body(call, body) => self.read_body(call, body),
                State::Done => {
                    self.at = self.held.len();
                    self.looked = 0;
                    return;
                }
            };
            self.state = next;
            if !go_on {
                return;
            }
        }
    }

    fn rest(&self) -> &str {
        &self.held[self.at..]
    }

    /// Counts the next `n_bytes` as read; what follows is looked at anew.
    fn skip(&mut self, n_bytes: usize) {
        self.at += n_bytes;
        self.looked = 0;
        self.ahead = Ahead::default();
    }

    /// Skips white space and says whether anything follows.
    fn skip_blanks(&mut self) -> bool {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        !self.rest().is_empty()
    }

    // Running text.

    fn read_text(&mut self, mut text: Text, ended: bool) -> (State, bool) {
        loop {
            let found = self.rest()[self.looked..].find('<');
            let end = found.map_or(self.rest().len(), |at| self.looked + at);
            let before = &self.rest()[self.looked..end];
            text.blank = text.blank && before.chars().all(char::is_whitespace);
            let decision = match found {
                None => Decision::More,
                Some(_) => self.decide(text, end),
            };
            match decision {
                Decision::More if ended => {
                    // What might have become markup is text, up to the next `<` at least.
                    let n_text = found.map_or(end, |_| end + 1);
                    text.blank &= found.is_none();
                    self.write_text(text.channel, n_text);
                    if found.is_none() {
                        return (State::Text(text), false);
                    }
                }
                Decision::More => {
                    let n_held = if text.blank {
                        end
                    } else {
                        trailing_newlines(&self.rest()[..end])
                    };
                    // The scanner's knowledge of the `<` stays valid.
                    let ahead = std::mem::take(&mut self.ahead);
                    self.write_text(text.channel, end - n_held);
                    (self.looked, self.ahead) = (n_held, ahead);
                    return (State::Text(text), false);
                }
                Decision::Literal => {
                    text.blank = false;
                    self.write_text(text.channel, end + 1);
                }
                Decision::ThinkOpen => {
                    // Blanks before it are as meaningless as the marker itself.
                    self.skip(end + THINK_OPEN.len());
                    text = Text {
                        channel: Channel::Reasoning,
                        blank: !self.has_reasoned,
                    };
                }
                Decision::ThinkClose => {
                    if text.channel == Channel::Reasoning {
                        self.write_text(text.channel, end);
                        self.skip(THINK_CLOSE.len());
                    } else {
                        self.skip(end + THINK_CLOSE.len());
                    }
                    text = Text {
                        channel: Channel::Content,
                        blank: true,
                    };
                }
                Decision::Block { skip, plain } => {
                    let n_newlines = trailing_newlines(&self.rest()[..end]);
                    self.write_text(text.channel, end - n_newlines);
                    self.reply.block_start = Some(self.n_done + self.at);
                    self.reply.implicit_think_end |= text.channel == Channel::Reasoning;
                    self.skip(n_newlines + skip);
                    return (State::Block { plain }, true);
                }
            }
        }
    }

    /// What the `<` at byte `at` of the rest is.
    fn decide(&mut self, text: Text, at: usize) -> Decision {
        let tag = &self.held[self.at + at..];
        let reasoning = text.channel == Channel::Reasoning;
        let closes = reasoning || text.blank;
        if closes && tag.starts_with(THINK_CLOSE) {
            return Decision::ThinkClose;
        }
        if text.blank && tag.starts_with(THINK_OPEN) {
            return Decision::ThinkOpen;
        }
        if closes && THINK_CLOSE.starts_with(tag) || text.blank && THINK_OPEN.starts_with(tag) {
            return Decision::More;
        }
        if self.tools.is_empty() {
            return Decision::Literal;
        }
        let ahead = &mut self.ahead;
        let plain = self.lenient_plain_xml;
        if ahead.opener.is_none() {
            let first = match ahead.first.advance(tag, plain) {
                Scan::More => return Decision::More,
                Scan::No => return Decision::Literal,
                Scan::Found(first) => first,
            };
            let is_opener = first.kind == TagKind::ToolCalls && first.canonical;
            let plain = first.plain;
            match first.kind {
                _ if first.closes => return Decision::Literal,
                _ if reasoning && !is_opener => return Decision::Literal,
                TagKind::ToolCalls if is_opener && !reasoning => {
                    let skip = first.n_bytes;
                    return Decision::Block { skip, plain };
                }
                TagKind::ToolCalls | TagKind::OtherWrapper => {}
                TagKind::Invoke if is_declared(&first, &self.tools) => {
                    return Decision::Block { skip: 0, plain };
                }
                TagKind::Invoke | TagKind::Parameter => return Decision::Literal,
            }
            ahead.second_at = first.n_bytes;
            ahead.opener = Some(first);
        }
        let Some(opener) = &ahead.opener else {
            return Decision::Literal;
        };
        let behind = &tag[ahead.second_at..];
        ahead.second_at += behind.len() - behind.trim_start().len();
        if ahead.second_at - opener.n_bytes > MAX_LOOKAHEAD_BLANKS {
            return Decision::Literal;
        }
        let behind = &tag[ahead.second_at..];
        if behind.is_empty() {
            return Decision::More;
        }
        match ahead.second.advance(behind, plain) {
            Scan::More => Decision::More,
            Scan::Found(call)
                if call.kind == TagKind::Invoke
                    && !call.closes
                    && is_declared(&call, &self.tools) =>
            {
                Decision::Block {
                    skip: opener.n_bytes,
                    plain: opener.plain,
                }
            }
            Scan::No | Scan::Found(_) => Decision::Literal,
        }
    }

    fn write_text(&mut self, channel: Channel, n_bytes: usize) {
        let range = self.at..self.at + n_bytes;
        self.skip(n_bytes);
        let text = &self.held[range];
        if text.is_empty() {
            return;
        }
        match channel {
            Channel::Reasoning => {
                self.has_reasoned |= !text.trim_start().is_empty();
                self.reply.reasoning.push_str(text);
                if let Some(Event::ReasoningDelta(last)) = self.events.last_mut() {
                    last.push_str(text);
                } else {
                    self.events.push(Event::ReasoningDelta(text.to_owned()));
                }
            }
            Channel::Content => {
                self.reply.content.push_str(text);
                if let Some(Event::ContentDelta(last)) = self.events.last_mut() {
                    last.push_str(text);
                } else {
                    self.events.push(Event::ContentDelta(text.to_owned()));
                }
            }
        }
    }

    // The block.

    /// Reads the tag that the rest begins with; `None` while it is incomplete.
    fn read_tag(&mut self, plain: bool) -> Option<Scan<Tag>> {
        let scan = self.ahead.first.advance(&self.held[self.at..], plain);
        match scan {
            Scan::More => None,
            scan => {
                self.ahead = Ahead::default();
                Some(scan)
            }
        }
    }

    fn malformed(&mut self, detail: &str) -> State {
        self.reply.malformed = Some(detail.to_owned());
        self.events.push(Event::Malformed {
            detail: detail.to_owned(),
        });
        State::Done
    }

    fn read_block(&mut self, plain: bool) -> (State, bool) {
        let stay = (State::Block { plain }, false);
        if !self.skip_blanks() {
            return stay;
        }
        let Some(scan) = self.read_tag(plain) else {
            return stay;
        };
        let next = match scan {
            Scan::Found(tag) => match (tag.kind, tag.closes) {
                (TagKind::Invoke, false) => self.start_call(&tag, plain),
                (TagKind::ToolCalls | TagKind::OtherWrapper, true) => {
                    if self.reply.tool_calls.is_empty() {
                        self.malformed(EMPTY_BLOCK)
                    } else {
                        self.events.push(Event::BlockDone);
                        State::Done
                    }
                }
                _ => self.malformed(UNEXPECTED_TEXT),
            },
            _ => self.malformed(UNEXPECTED_TEXT),
        };
        (next, true)
    }

    fn start_call(&mut self, tag: &Tag, plain: bool) -> State {
        let name = match tag.attribute("name") {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => return self.malformed("tool call without a name"),
        };
        self.skip(tag.n_bytes);
        let index = self.reply.tool_calls.len();
        self.reply.tool_calls.push(ParsedCall {
            name: name.clone(),
            ..ParsedCall::default()
        });
        self.events.push(Event::ToolStart { index, name });
        self.write_arguments("{");
        if tag.empty {
            return self.end_call(plain);
        }
        State::Call(Call {
            plain,
            ..Call::default()
        })
    }

    fn end_call(&mut self, plain: bool) -> State {
        self.write_arguments("}");
        if let Some(call) = self.reply.tool_calls.last_mut() {
            call.complete = true;
        }
        let index = self.reply.tool_calls.len() - 1;
        self.events.push(Event::ToolEnd { index });
        State::Block { plain }
    }

    fn call_name(&self) -> &str {
        self.reply.tool_calls.last().map_or("", |call| &call.name)
    }

    fn read_call(&mut self, mut call: Call) -> (State, bool) {
        if !self.skip_blanks() {
            return (State::Call(call), false);
        }
        if call.keys.is_empty() && self.rest().starts_with('{') {
            return (State::Body(call, JsonText::default()), true);
        }
        let Some(scan) = self.read_tag(call.plain) else {
            return (State::Call(call), false);
        };
        let Scan::Found(tag) = scan else {
            return (self.malformed(UNEXPECTED_TEXT), true);
        };
        let next = match (tag.kind, tag.closes) {
            (TagKind::Parameter, false) => self.start_value(call, &tag),
            (TagKind::Parameter, true) => {
                self.skip(tag.n_bytes);
                State::Call(call)
            }
            // The closing tag of the call, or one that implies it.
            (_, true) | (TagKind::Invoke, false) => {
                if tag.kind == TagKind::Invoke && tag.closes {
                    self.skip(tag.n_bytes);
                }
                self.write_wrapped(&mut call, true);
                self.end_call(call.plain)
            }
            (TagKind::ToolCalls | TagKind::OtherWrapper, false) => self.malformed(UNEXPECTED_TEXT),
        };
        (next, true)
    }

    fn start_value(&mut self, mut call: Call, tag: &Tag) -> State {
        let Some(key) = tag.attribute("name") else {
            return self.malformed("parameter without a name");
        };
        let key = key.replace(QUOTE_ESCAPED, "\"");
        self.skip(tag.n_bytes);
        self.write_wrapped(&mut call, false);
        let is_text = match tag.attribute("string") {
            Some("true") => true,
            Some("false") => false,
            _ => self.tools.takes_string(self.call_name(), &key),
        };
        let kind = if call.keys.contains(&key) {
            ValueKind::Repeated
        } else if is_text {
            self.write_key(&key);
            self.write_arguments("\"");
            ValueKind::Text
        } else {
            ValueKind::Json(JsonText::default())
        };
        let value = ParameterValue { key, kind };
        if tag.empty {
            return self.end_value(call, value);
        }
        State::Value(call, value)
    }

    fn read_value(&mut self, call: Call, mut value: ParameterValue) -> (State, bool) {
        let is_text = matches!(value.kind, ValueKind::Text);
        let matters = |c: char| c == '<' || is_text && c == '&';
        loop {
            let found = self.rest().find(matters);
            let n_before = found.unwrap_or(self.rest().len());
            if n_before > 0 {
                self.write_value(&mut value, n_before);
            }
            if found.is_none() {
                return (State::Value(call, value), false);
            }
            let rest = self.rest();
            if rest.starts_with(PARAMETER_CLOSE_ESCAPED) {
                self.write_arguments(PARAMETER_CLOSE);
                self.skip(PARAMETER_CLOSE_ESCAPED.len());
                continue;
            }
            if rest.starts_with('&') {
                if PARAMETER_CLOSE_ESCAPED.starts_with(rest) {
                    return (State::Value(call, value), false);
                }
                self.write_value(&mut value, 1);
                continue;
            }
            let Some(scan) = self.read_tag(call.plain) else {
                return (State::Value(call, value), false);
            };
            match scan {
                Scan::Found(tag) if tag.kind == TagKind::Parameter && tag.closes => {
                    self.skip(tag.n_bytes);
                    return (self.end_value(call, value), true);
                }
                Scan::Found(tag)
                    if tag.kind == TagKind::Invoke
                        && tag.closes
                        && (tag.canonical || tag.plain) =>
                {
                    return (self.end_value(call, value), true);
                }
                _ => self.write_value(&mut value, 1),
            }
        }
    }

    /// Adds the next `n_bytes` to a value.
    fn write_value(&mut self, value: &mut ParameterValue, n_bytes: usize) {
        let text = &self.held[self.at..self.at + n_bytes];
        match &mut value.kind {
            ValueKind::Text => {
                let mut escaped = String::with_capacity(text.len());
                json::escape(text, &mut escaped);
                self.write_arguments(&escaped);
            }
            ValueKind::Json(json) => json.push(text),
            ValueKind::Repeated => {}
        }
        self.skip(n_bytes);
    }

    fn end_value(&mut self, mut call: Call, value: ParameterValue) -> State {
        match value.kind {
            ValueKind::Text => self.write_arguments("\""),
            ValueKind::Json(json) => {
                let (text, parsed) = json_value(json.text.trim());
                match parsed {
                    Value::Object(members)
                        if call.keys.is_empty() && self.is_wrapper(&value.key, &members) =>
                    {
                        call.wrapped = Some(Wrapped {
                            key: value.key.clone(),
                            value: text,
                            members,
                        });
                    }
                    _ => {
                        self.write_key(&value.key);
                        self.write_arguments(&text);
                    }
                }
            }
            ValueKind::Repeated => {}
        }
        call.keys.insert(value.key);
        State::Call(call)
    }

    fn read_body(&mut self, mut call: Call, mut body: JsonText) -> (State, bool) {
        loop {
            let found = self.rest().find('<');
            let n_before = found.unwrap_or(self.rest().len());
            if n_before > 0 {
                body.push(&self.held[self.at..self.at + n_before]);
                self.skip(n_before);
            }
            if found.is_none() {
                return (State::Body(call, body), false);
            }
            match self.read_tag(call.plain) {
                None => return (State::Body(call, body), false),
                Some(Scan::Found(tag)) if tag.kind == TagKind::Invoke && tag.closes => {
                    let Ok(Value::Object(members)) = json::parse(&body.text) else {
                        let detail = "the arguments of a tool call are not a JSON object";
                        return (self.malformed(detail), true);
                    };
                    self.skip(tag.n_bytes);
                    self.write_members(
                        &mut call,
                        unwrapped(members, |key, inner| self.is_wrapper(key, inner)),
                    );
                    return (self.end_call(call.plain), true);
                }
                Some(_) => {
                    body.push("<");
                    self.skip(1);
                }
            }
        }
    }

    /// Whether an argument `key` that is the only one, with `members` for its value, stands for
    /// the whole arguments: the schema does not know it, but knows all that is in it.
    fn is_wrapper(&self, key: &str, members: &Map<String, Value>) -> bool {
        let declared = |key: &str| self.tools.property(self.call_name(), key).is_some();
        matches!(key, "arguments" | "input")
            && !declared(key)
            && !members.is_empty()
            && members.keys().all(|key| declared(key))
    }

    /// Writes the parameter that was kept back, as what it holds when it is `alone`.
    fn write_wrapped(&mut self, call: &mut Call, alone: bool) {
        let Some(wrapped) = call.wrapped.take() else {
            return;
        };
        if alone {
            self.write_members(call, wrapped.members);
        } else {
            self.write_key(&wrapped.key);
            self.write_arguments(&wrapped.value);
        }
    }

    fn write_members(&mut self, call: &mut Call, members: Map<String, Value>) {
        for (key, value) in members {
            self.write_key(&key);
            self.write_arguments(&json::to_string(&value));
            call.keys.insert(key);
        }
    }

    fn write_key(&mut self, key: &str) {
        let is_first = self
            .reply
            .tool_calls
            .last()
            .is_some_and(|call| call.arguments == "{");
        let mut text = String::from(if is_first { "" } else { ", " });
        json::write_string(key, &mut text);
        text.push_str(": ");
        self.write_arguments(&text);
    }

    fn write_arguments(&mut self, text: &str) {
        let Some(call) = self.reply.tool_calls.last_mut() else {
            return;
        };
        call.arguments.push_str(text);
        let index = self.reply.tool_calls.len() - 1;
        match self.events.last_mut() {
            Some(Event::ToolArgsDelta { text: last, .. }) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(Event::ToolArgsDelta {
                index,
                text: text.to_owned(),
            }),
        }
    }
}

fn is_declared(call: &Tag, tools: &ToolSchemas) -> bool {
    call.attribute("name")
        .is_some_and(|name| tools.contains(name))
}

/// How many newlines `text` ends in, of those that may belong to a block.
fn trailing_newlines(text: &str) -> usize {
    let newlines = text.bytes().rev().take(BLOCK_NEWLINES);
    newlines.take_while(|&b| b == b'\n').count()
}

/// The members of the one object in `members`, if `is_wrapper` says that it wraps them.
fn unwrapped(
    members: Map<String, Value>,
    is_wrapper: impl Fn(&str, &Map<String, Value>) -> bool,
) -> Map<String, Value> {
    match members.iter().next() {
        Some((key, Value::Object(inner))) if members.len() == 1 && is_wrapper(key, inner) => {
            inner.clone()
        }
        _ => members,
    }
}
