//! The markup of tool calls: how a block of calls is written, and how a tag is recognised while
//! it arrives.

use crate::json;
use crate::message::ToolCall;
use crate::prompt::{MarkerText, Prompt};
use serde_json::Value;

/// Opens a block of calls.
pub(crate) const BLOCK_OPEN: &str = "<｜DSML｜tool_calls>";
/// Closes a block of calls.
pub(crate) const BLOCK_CLOSE: &str = "</｜DSML｜tool_calls>";
/// Closes one call.
pub(crate) const INVOKE_CLOSE: &str = "</｜DSML｜invoke>";
/// Closes one parameter.
pub(crate) const PARAMETER_CLOSE: &str = "</｜DSML｜parameter>";
/// How [`PARAMETER_CLOSE`] is written inside a string value, so that the value does not end there.
pub(crate) const PARAMETER_CLOSE_ESCAPED: &str = "&lt;/｜DSML｜parameter>";
/// How `"` is written inside a parameter's name.
pub(crate) const QUOTE_ESCAPED: &str = "&quot;";
/// The one parameter of a call whose arguments are not an object.
const WHOLE_ARGUMENTS: &str = "arguments";

/// Appends a block of calls. With [`MarkerText::Defuse`], a parameter name with `"` and a string
/// value with [`PARAMETER_CLOSE`] are written so that they can be read back; the publisher's
/// encoder writes both raw.
pub(crate) fn write_block(calls: &[ToolCall], prompt: &mut Prompt) {
    prompt.template(BLOCK_OPEN);
    for call in calls {
        prompt.template("\n<｜DSML｜invoke name=\"");
        prompt.client(&call.name);
        prompt.template("\">\n");
        write_parameters(&call.arguments, prompt);
        prompt.template("\n");
        prompt.template(INVOKE_CLOSE);
    }
    prompt.template("\n");
    prompt.template(BLOCK_CLOSE);
}

fn write_parameters(arguments: &str, prompt: &mut Prompt) {
    match json::parse(arguments) {
        Ok(Value::Object(members)) => {
            for (i, (key, value)) in members.iter().enumerate() {
                if i > 0 {
                    prompt.template("\n");
                }
                write_parameter(key, value, prompt);
            }
        }
        Ok(Value::Null) => {}
        Ok(value) => write_parameter(WHOLE_ARGUMENTS, &value, prompt),
        Err(_) => write_parameter(WHOLE_ARGUMENTS, &Value::from(arguments), prompt),
    }
}

fn write_parameter(key: &str, value: &Value, prompt: &mut Prompt) {
    let defuse = prompt.marker_text == MarkerText::Defuse;
    let replace = |text: &str, from: &str, to: &str| {
        if defuse {
            text.replace(from, to)
        } else {
            text.to_owned()
        }
    };
    prompt.template("<｜DSML｜parameter name=\"");
    prompt.client(&replace(key, "\"", QUOTE_ESCAPED));
    if let Value::String(text) = value {
        prompt.template("\" string=\"true\">");
        prompt.client(&replace(text, PARAMETER_CLOSE, PARAMETER_CLOSE_ESCAPED));
    } else {
        prompt.template("\" string=\"false\">");
        prompt.client(&json::to_string(value));
    }
    prompt.template(PARAMETER_CLOSE);
}

/// What a tag is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagKind {
    /// The block, under its proper name.
    ToolCalls,
    /// The block, under a name that models also give it.
    OtherWrapper,
    /// One call.
    Invoke,
    /// One parameter.
    Parameter,
}

const TAG_NAMES: [(&str, TagKind); 6] = [
    ("tool_calls", TagKind::ToolCalls),
    ("tool_call", TagKind::OtherWrapper),
    ("toolcalls", TagKind::OtherWrapper),
    ("function_calls", TagKind::OtherWrapper),
    ("invoke", TagKind::Invoke),
    ("parameter", TagKind::Parameter),
];

/// Attributes longer than this many characters are no attributes.
const MAX_ATTRIBUTE_CHARS: usize = 4096;

/// A complete tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) kind: TagKind,
    /// Whether it begins with `</`.
    pub(crate) closes: bool,
    /// Whether exactly one fullwidth bar stands on both sides of `DSML`.
    pub(crate) canonical: bool,
    /// Whether it has no `DSML` at all.
    pub(crate) plain: bool,
    /// Whether it ends in `/>`.
    pub(crate) empty: bool,
    /// Names and values, in order.
    attributes: Vec<(String, String)>,
    /// Length from `<` to `>` in bytes.
    pub(crate) n_bytes: usize,
}

impl Tag {
    /// The value of the first attribute of exactly this name.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        let mut all = self.attributes.iter();
        all.find_map(|(n, value)| (n == name).then_some(value.as_str()))
    }
}

/// What can be said of a text that begins with `<`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan<T> {
    /// It may become what is looked for.
    More,
    /// It is something else.
    No,
    /// It is.
    Found(T),
}

/// Reads one tag as it arrives, every character once.
#[derive(Clone, Debug, Default)]
pub(crate) struct TagScanner {
    /// The tag up to its attributes.
    head: Option<Tag>,
    /// Bytes of the text that have been read into `head` and `place`.
    read: usize,
    n_attribute_chars: usize,
    place: Place,
    /// Text since the last attribute, without what belongs to a value.
    key: String,
    value: String,
}

/// Where in the attributes a scanner is.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// Before `=`.
    #[default]
    Key,
    /// Between `=` and a quote.
    Equals,
    /// In a value that this kind of quote ends.
    Value(Quote),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Quote {
    Double,
    Single,
    Typographic,
}

impl Quote {
    fn of(c: char) -> Option<Quote> {
        match c {
            '"' => Some(Quote::Double),
            '\'' => Some(Quote::Single),
            '“' | '”' => Some(Quote::Typographic),
            _ => None,
        }
    }
}

impl TagScanner {
    /// Goes on with a tag. `text` begins at its `<` and holds at least what it held last time;
    /// `plain` also accepts tags without `DSML`.
    pub(crate) fn advance(&mut self, text: &str, plain: bool) -> Scan<Tag> {
        if self.head.is_none() {
            match read_head(text, plain) {
                Scan::More => return Scan::More,
                Scan::No => return Scan::No,
                Scan::Found(head) => {
                    self.read = head.n_bytes;
                    self.head = Some(head);
                }
            }
        }
        let Some(head) = &mut self.head else {
            return Scan::No;
        };
        for c in text[self.read..].chars() {
            self.read += c.len_utf8();
            match self.place {
                Place::Value(quote) if Quote::of(c) == Some(quote) => {
                    let name = self.key.split_whitespace().next_back().unwrap_or_default();
                    let value = std::mem::take(&mut self.value);
                    head.attributes.push((name.to_owned(), value));
                    self.key.clear();
                    self.place = Place::Key;
                }
                Place::Value(_) => self.value.push(c),
                _ if c == '>' => {
                    head.empty = self.key.trim_end().ends_with('/');
                    head.n_bytes = self.read;
                    return match self.head.take() {
                        Some(tag) => Scan::Found(tag),
                        None => Scan::No,
                    };
                }
                _ if c == '<' => return Scan::No,
                Place::Key if c == '=' => self.place = Place::Equals,
                Place::Key => self.key.push(c),
                Place::Equals => match Quote::of(c) {
                    Some(quote) => self.place = Place::Value(quote),
                    None if c.is_whitespace() => {}
                    None => {
                        // A value without quotes is none, and neither is what stood before it.
                        self.key.clear();
                        self.key.push(c);
                        self.place = Place::Key;
                    }
                },
            }
            self.n_attribute_chars += 1;
            if self.n_attribute_chars > MAX_ATTRIBUTE_CHARS {
                return Scan::No;
            }
        }
        Scan::More
    }
}

/// Reads `<`, an optional `/`, bars, `DSML`, bars and the name. Decides within 40 bytes.
fn read_head(text: &str, plain: bool) -> Scan<Tag> {
    const WORD: &str = "DSML";
    let Some(mut rest) = text.strip_prefix('<') else {
        return Scan::No;
    };
    let closes = rest.starts_with('/');
    rest = &rest[usize::from(closes)..];
    let before = bars(&mut rest);
    let mut after = "";
    let is_plain = plain && before.is_empty() && !rest.is_empty() && !rest.starts_with('D');
    if !is_plain {
        let Some(behind) = rest.strip_prefix(WORD) else {
            return if WORD.starts_with(rest) {
                Scan::More
            } else {
                Scan::No
            };
        };
        rest = behind;
        after = bars(&mut rest);
        if after.is_empty() {
            return if rest.is_empty() {
                Scan::More
            } else {
                Scan::No
            };
        }
    }
    let is_name = |c: char| c.is_ascii_alphabetic() || c == '_';
    let Some((name_end, next)) = rest.char_indices().find(|&(_, c)| !is_name(c)) else {
        let possible = TAG_NAMES.iter().any(|(name, _)| name.starts_with(rest));
        return if possible { Scan::More } else { Scan::No };
    };
    let known = TAG_NAMES
        .iter()
        .find(|(name, _)| *name == &rest[..name_end]);
    match known {
        Some(&(_, kind)) if next.is_whitespace() || matches!(next, '/' | '>') => Scan::Found(Tag {
            kind,
            closes,
            canonical: before == "｜" && after == "｜",
            plain: is_plain,
            empty: false,
            attributes: Vec::new(),
            n_bytes: text.len() - rest.len() + name_end,
        }),
        _ => Scan::No,
    }
}

/// Takes up to two bars, fullwidth or ASCII, from the front of `text`.
fn bars<'a>(text: &mut &'a str) -> &'a str {
    let whole = *text;
    for _ in 0..2 {
        *text = text.strip_prefix(['｜', '|']).unwrap_or(text);
    }
    &whole[..whole.len() - text.len()]
}
