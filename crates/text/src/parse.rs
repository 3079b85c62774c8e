//! The model's text to reasoning, content and tool calls, while it arrives.
//!
//! On well-formed text the parser agrees with [`crate::parse_strict`]. On the text that models
//! also write (other spellings of the markup, missing closers, a call inside the reasoning) it
//! recovers where that cannot turn text into a call by accident, and otherwise says what is
//! malformed. However the text is cut into chunks, the deltas of each kind add up to the same and
//! the reply is the same; what a later character could still reclassify is held back.

mod calls;
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
use calls::is_declared;
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
}

/// How many newlines `text` ends in, of those that may belong to a block.
fn trailing_newlines(text: &str) -> usize {
    let newlines = text.bytes().rev().take(BLOCK_NEWLINES);
    newlines.take_while(|&b| b == b'\n').count()
}
