//! Tool calls that cannot be malformed: what may follow in a block of calls while it is written.
//!
//! From the marker that opens a block on, a [`CallReader`] admits only tokens that keep the block
//! well-formed, as `ds4_text::parse_strict` and the tolerant parser both read it: the names of
//! tools that may be called, the parameters that their schemas list and none twice, `string="true"`
//! or `"false"` as the types have it, JSON where it is not a string, and the closing tags, an
//! invocation's only when nothing required is missing. Strings are free but for closing tags,
//! which in any spelling would end them. A schema that lists properties and does not speak of
//! others is taken to mean those alone.
//!
//! The markup is a choice among a few texts at a time. They end at line breaks, where the
//! tokens that the model was trained on end too, so that a line is never torn out of its tokens.

mod closing;
mod json;
mod rules;
mod vocabulary;

use std::collections::HashSet;
use std::sync::Arc;

use ds4_engine::TokenSet;

use crate::generation::Generation;
use closing::{Closing, Read};
use json::{Json, Kinds};
use rules::{MAX_KEY_BYTES, ToolRules, ValueRules};

pub use vocabulary::CallVocabulary;

/// What opens the markup of a block. Reading begins behind it.
pub(crate) const MARKUP_OPEN: &str = "<｜DSML｜";
/// What ends a value.
const VALUE_CLOSE: &str = "</｜DSML｜parameter>\n";
/// How much of [`VALUE_CLOSE`] a value's text is read to.
const CLOSE_OPEN: usize = "</｜DSML｜".len();

/// Reads a block of calls and says what may come next.
pub struct CallReader {
    vocabulary: Arc<CallVocabulary>,
    tools: Arc<[ToolRules]>,
    begun: bool,
    state: State,
    /// The texts of which one is being written.
    lines: Vec<Line>,
    call: Call,
    /// What was last said to be admitted, and where.
    admitted: Option<(State, Arc<TokenSet>)>,
}

/// The call that is being written.
#[derive(Default)]
struct Call {
    tool: usize,
    /// Parameters given.
    given: HashSet<String>,
    /// The name of a parameter that the schema may not list, as far as it is written.
    key: Vec<u8>,
}

/// One of the texts that may come, and what follows it.
#[derive(Clone, Debug)]
struct Line {
    text: Vec<u8>,
    then: Then,
    /// The listed parameter that it gives.
    gives: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    /// The parameters of a tool.
    Parameters { tool: usize },
    /// The next parameter, or the end of the call.
    NextParameter,
    /// The next call, or the end of the block.
    NextCall,
    /// The name of a parameter.
    Key,
    /// A string.
    Text,
    /// One of the listed strings of a parameter.
    Choice { parameter: usize },
    /// Another value.
    Json(Kinds),
    /// Whatever follows a block.
    Done,
}

/// Where the end of what was read is. Everything that a token can change is in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the lines `first..end`, which are alike so far.
    Line { first: u32, end: u32, at: u32 },
    /// In the name of a parameter, whose end must begin a token.
    Key { begins_token: bool, n_bytes: u32 },
    /// Behind it.
    KeyEnd,
    /// In a string.
    Text(Closing),
    /// In another value.
    Json(Json),
    /// In the tag behind a value.
    Close { at: u32 },
    /// Behind the block.
    Done,
}

impl CallReader {
    /// For the calls that a request may make; `None` when there are none.
    pub fn new(vocabulary: Arc<CallVocabulary>, generation: &Generation) -> Option<CallReader> {
        let tools: Arc<[ToolRules]> = ToolRules::of(generation).into();
        if tools.is_empty() {
            return None;
        }
        let mut reader = CallReader {
            vocabulary,
            tools,
            begun: false,
            state: State::Done,
            lines: Vec::new(),
            call: Call::default(),
            admitted: None,
        };
        reader.choose(reader.names("tool_calls>\n<｜DSML｜"));
        Some(reader)
    }

    /// Whether a block has begun.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Tokens that may come next; `None` when any may.
    pub fn admitted(&mut self) -> Option<Arc<TokenSet>> {
        if self.state == State::Done {
            return None;
        }
        if let Some((state, set)) = &self.admitted
            && *state == self.state
        {
            return Some(Arc::clone(set));
        }
        let read = |state, byte| self.read(state, byte);
        let set = match self.state {
            State::Text(closing) => self.vocabulary.readable_in_text(closing, self.state, read),
            State::Json(json) if json.is_in_plain_text() => {
                self.vocabulary.readable_in_string(self.state, read)
            }
            state => self.vocabulary.readable(state, read),
        };
        self.admitted = Some((self.state, Arc::clone(&set)));
        Some(set)
    }

    /// Reads a token of the block; of the first one what stands behind `<｜DSML｜`. Whether it can be
    /// read; if not, nothing that follows can.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.begun = true;
        for &byte in bytes {
            let key = matches!(self.state, State::Key { .. });
            let mut next = self.read(self.state, byte);
            if next.is_none() {
                // A line may end here and another go on.
                self.settle();
                next = self.read(self.state, byte);
            }
            let Some(next) = next else {
                return false;
            };
            if key && next != State::KeyEnd {
                self.call.key.push(byte);
            }
            self.state = next;
            if self.is_between() {
                self.settle();
            }
        }
        self.settle();
        true
    }

    /// Whether the state is the end of something and of nothing longer.
    fn is_between(&self) -> bool {
        match self.state {
            State::Line { first, end, at } => {
                let lines = &self.lines[first as usize..end as usize];
                lines.iter().all(|line| line.text.len() == at as usize)
            }
            State::Close { at } => at as usize == VALUE_CLOSE.len(),
            State::KeyEnd => true,
            _ => false,
        }
    }

    /// Goes on from the end of a line, a name or a value.
    fn settle(&mut self) {
        let then = match self.state {
            State::Line { first, at, .. } => {
                let line = &self.lines[first as usize];
                let ends = line.text.len() == at as usize;
                let then = line.then;
                if let Some(parameter) = line.gives.filter(|_| ends) {
                    let rules = &self.tools[self.call.tool].parameters[parameter];
                    self.call.given.insert(rules.key.clone());
                }
                ends.then_some(then)
            }
            State::Close { at } if at as usize == VALUE_CLOSE.len() => Some(Then::NextParameter),
            State::Key { n_bytes, .. } => {
                self.state = State::Key {
                    begins_token: true,
                    n_bytes,
                };
                // Whether the name may end here depends on what it is.
                self.admitted = None;
                None
            }
            State::KeyEnd => {
                self.choose_flag();
                None
            }
            _ => None,
        };
        if let Some(then) = then {
            self.follow(then);
        }
    }

    fn follow(&mut self, then: Then) {
        match then {
            Then::Parameters { tool } => {
                self.call = Call {
                    tool,
                    ..Call::default()
                };
                self.choose_parameter();
            }
            Then::NextParameter => self.choose_parameter(),
            Then::NextCall => {
                let mut lines = self.names("<｜DSML｜");
                lines.push(line("</｜DSML｜tool_calls>", Then::Done));
                self.choose(lines);
            }
            Then::Key => {
                self.call.key.clear();
                self.state = State::Key {
                    begins_token: true,
                    n_bytes: 0,
                };
                self.admitted = None;
            }
            Then::Text => self.state = State::Text(Closing::default()),
            Then::Json(kinds) => self.state = State::Json(Json::new(kinds)),
            Then::Choice { parameter } => {
                let value = &self.tools[self.call.tool].parameters[parameter].value;
                let choices = value.choices.iter().flatten();
                let lines = choices.map(|text| {
                    let text = format!("{text}{VALUE_CLOSE}");
                    line(&text, Then::NextParameter)
                });
                self.choose(lines.collect());
            }
            Then::Done => self.state = State::Done,
        }
    }

    /// Begins one of these lines.
    fn choose(&mut self, mut lines: Vec<Line>) {
        lines.sort_by(|a, b| a.text.cmp(&b.text));
        self.state = State::Line {
            first: 0,
            end: lines.len() as u32,
            at: 0,
        };
        self.lines = lines;
        self.admitted = None;
    }

    /// The opening tags of all tools, behind what stands before them.
    fn names(&self, before: &str) -> Vec<Line> {
        let mut lines = Vec::new();
        for (tool, rules) in self.tools.iter().enumerate() {
            let open = format!("{before}invoke name=\"{}\">\n", rules.name);
            if rules.required.is_empty() {
                // The two line breaks are one token.
                let whole = format!("{open}\n</｜DSML｜invoke>\n");
                lines.push(line(&whole, Then::NextCall));
            }
            lines.push(line(&open, Then::Parameters { tool }));
        }
        lines
    }

    /// Begins a parameter, or ends the call.
    fn choose_parameter(&mut self) {
        let rules = &self.tools[self.call.tool];
        let given = &self.call.given;
        let mut lines = Vec::new();
        let before = "<｜DSML｜parameter name=\"";
        let is_complete = rules.required.iter().all(|key| given.contains(key));
        if rules.others && is_complete {
            // Those that are listed are known by what is written.
            lines.push(line(before, Then::Key));
        } else {
            for (parameter, rules) in rules.parameters.iter().enumerate() {
                if !given.contains(&rules.key) {
                    let key = rules.key.replace('"', "&quot;");
                    let open = format!("{before}{key}\"");
                    lines.extend(flags(&open, &rules.value, Some(parameter)));
                }
            }
        }
        if is_complete {
            lines.push(line("</｜DSML｜invoke>\n", Then::NextCall));
            if given.is_empty() {
                lines.push(line("\n</｜DSML｜invoke>\n", Then::NextCall));
            }
        }
        self.choose(lines);
    }

    /// Says of what kind the value of a parameter is whose name was written freely.
    fn choose_flag(&mut self) {
        let key = String::from_utf8_lossy(&self.call.key).into_owned();
        let parameters = &self.tools[self.call.tool].parameters;
        let listed = parameters.iter().position(|rules| rules.key == key);
        let lines = match listed {
            Some(at) => flags("", &parameters[at].value, Some(at)),
            None => flags("", &ValueRules::any(), None),
        };
        self.call.given.insert(key);
        self.choose(lines);
    }

    /// The state behind one more byte, if it can have it.
    fn read(&self, state: State, byte: u8) -> Option<State> {
        match state {
            State::Line { first, end, at } => self.read_line(first, end, at, byte),
            State::Key {
                begins_token,
                n_bytes,
            } => match byte {
                b'"' if begins_token && self.is_new_key() => Some(State::KeyEnd),
                // The last begins a fullwidth bar.
                b'"' | b'<' | b'>' | b'&' | ..b' ' | 0xef => None,
                _ if n_bytes as usize == MAX_KEY_BYTES => None,
                _ => Some(State::Key {
                    begins_token: false,
                    n_bytes: n_bytes + 1,
                }),
            },
            State::Text(closing) => match closing.read(byte) {
                Read::Text(closing) => Some(State::Text(closing)),
                Read::Closes => Some(State::Close {
                    at: CLOSE_OPEN as u32,
                }),
                Read::Lookalike => None,
            },
            State::Json(json) => match json.read(byte) {
                Some(json) => Some(State::Json(json)),
                None if json.is_complete() => self.read(State::Close { at: 0 }, byte),
                None => None,
            },
            State::Close { at } => {
                let next = VALUE_CLOSE.as_bytes().get(at as usize);
                (next == Some(&byte)).then_some(State::Close { at: at + 1 })
            }
            State::KeyEnd | State::Done => None,
        }
    }

    fn read_line(&self, first: u32, end: u32, at: u32, byte: u8) -> Option<State> {
        let lines = &self.lines[first as usize..end as usize];
        // A line that ends here stands before those that go on.
        let byte_of = |line: &Line| line.text.get(at as usize).copied();
        let from = lines.partition_point(|line| byte_of(line) < Some(byte));
        let to = lines.partition_point(|line| byte_of(line) <= Some(byte));
        if from < to {
            return Some(State::Line {
                first: first + from as u32,
                end: first + to as u32,
                at: at + 1,
            });
        }
        // A tag's end and a value's beginning may be one token.
        match lines.first() {
            Some(line) if line.text.len() == at as usize => match line.then {
                Then::Text => self.read(State::Text(Closing::default()), byte),
                Then::Json(kinds) => self.read(State::Json(Json::new(kinds)), byte),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the name written so far is one that was not given before.
    fn is_new_key(&self) -> bool {
        let key = String::from_utf8_lossy(&self.call.key);
        !key.is_empty() && !self.call.given.contains(key.as_ref())
    }
}

fn line(text: &str, then: Then) -> Line {
    Line {
        text: text.as_bytes().to_vec(),
        then,
        gives: None,
    }
}

/// The ends of a parameter's tag.
fn flags(open: &str, value: &ValueRules, parameter: Option<usize>) -> Vec<Line> {
    let line = |text: &str, then| Line {
        gives: parameter,
        ..line(text, then)
    };
    let mut lines = Vec::new();
    if value.string {
        let then = match (&value.choices, parameter) {
            (Some(_), Some(parameter)) => Then::Choice { parameter },
            _ => Then::Text,
        };
        lines.push(line(&format!("{open} string=\"true\">"), then));
    }
    if !value.json.is_empty() {
        let then = Then::Json(value.json);
        lines.push(line(&format!("{open} string=\"false\">"), then));
    }
    lines
}
