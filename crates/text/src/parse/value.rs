//! Argument values that are not strings.

use serde_json::Value;

use crate::json;

/// JSON text as it arrives.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonText {
    pub(super) text: String,
    /// Whether its end is inside a string, and behind a backslash there.
    pub(super) in_string: bool,
    escaped: bool,
}

impl JsonText {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        for b in text.bytes() {
            match b {
                _ if self.escaped => self.escaped = false,
                b'"' => self.in_string = !self.in_string,
                b'\\' => self.escaped = self.in_string,
                _ => {}
            }
        }
    }
}

/// A value that is not a string, as JSON text and read: as it is written if it is JSON, with
/// Python's literals replaced if it is then, otherwise as a string.
pub(super) fn json_value(text: &str) -> (String, Value) {
    if let Some(value) = read(text) {
        return (text.to_owned(), value);
    }
    let replaced = without_python_literals(text);
    if let Some(value) = read(&replaced) {
        return (replaced, value);
    }
    let value = Value::from(text);
    (json::to_string(&value), value)
}

/// The one value in `text`, if it is not nested too deeply to be read inside the arguments' object.
fn read(text: &str) -> Option<Value> {
    let Ok(Value::Array(mut values)) = json::parse(&format!("[{text}]")) else {
        return None;
    };
    let value = values.pop()?;
    values.is_empty().then_some(value)
}

/// `text` with the words `True`, `False` and `None` outside strings as JSON spells them.
fn without_python_literals(text: &str) -> String {
    let mut out = JsonText::default();
    let mut rest = text;
    while !rest.is_empty() {
        let n_word = rest
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len());
        let n_other = rest.chars().next().map_or(0, char::len_utf8);
        let (word, behind) = rest.split_at(if n_word > 0 { n_word } else { n_other });
        out.push(match word {
            "True" if !out.in_string => "true",
            "False" if !out.in_string => "false",
            "None" if !out.in_string => "null",
            word => word,
        });
        rest = behind;
    }
    out.text
}
