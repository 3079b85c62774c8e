//! What the end of a block's text belongs to, as far as the grammar does not say it.

use super::closing::{Closing, Read};

/// Containers that may be open at once; readers stop at 128.
const MAX_DEPTH: u32 = 100;
/// Bytes of a tag's end that are remembered.
const TAIL_BYTES: usize = 16;
/// Ends of the tags that open values.
const TEXT_OPENS: &[u8] = b"string=\"true\">";
const JSON_OPENS: &[u8] = b"string=\"false\">";

/// Where the text stands. A reader of tags ends a value at the first closing tag, in a JSON string
/// too, however it is spelt; and a reader of JSON stops at some depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In markup, whose last bytes these are.
    Tag(Vec<u8>),
    /// In a string.
    Text(Closing),
    /// In another value.
    Json(Json),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Json {
    depth: u32,
    string: Option<JsonString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct JsonString {
    escaped: bool,
    closing: Closing,
}

impl Default for Place {
    fn default() -> Place {
        Place::Tag(Vec::new())
    }
}

impl Place {
    /// Reads a byte that the grammar takes; whether readers of tags and of JSON take it too.
    pub(super) fn read(&mut self, byte: u8) -> bool {
        match self {
            Place::Tag(tail) => {
                tail.push(byte);
                if tail.ends_with(TEXT_OPENS) {
                    *self = Place::Text(Closing::default());
                } else if tail.ends_with(JSON_OPENS) {
                    *self = Place::Json(Json::default());
                } else if tail.len() > 2 * TAIL_BYTES {
                    tail.drain(..TAIL_BYTES);
                }
                true
            }
            Place::Text(closing) => {
                match closing.read(byte) {
                    Read::Text(next) => *closing = next,
                    Read::Closes => *self = Place::default(),
                    Read::Lookalike => return false,
                }
                true
            }
            Place::Json(json) => match (&mut json.string, byte) {
                (Some(string), byte) => {
                    let Read::Text(closing) = string.closing.read(byte) else {
                        return false;
                    };
                    string.closing = closing;
                    match (string.escaped, byte) {
                        (false, b'"') => json.string = None,
                        (escaped, byte) => string.escaped = !escaped && byte == b'\\',
                    }
                    true
                }
                (None, b'"') => {
                    json.string = Some(JsonString::default());
                    true
                }
                (None, b'{' | b'[') => {
                    json.depth += 1;
                    json.depth <= MAX_DEPTH
                }
                (None, b'}' | b']') => {
                    json.depth = json.depth.saturating_sub(1);
                    true
                }
                (None, b'<') => {
                    *self = Place::default();
                    true
                }
                (None, _) => true,
            },
        }
    }

    /// Whether one token may make a closing tag where none may stand.
    pub(super) fn is_near_closing(&self) -> bool {
        match self {
            Place::Tag(_) => false,
            Place::Text(closing) => closing.is_near(),
            Place::Json(json) => json.string.is_some_and(|string| string.closing.is_near()),
        }
    }

    /// Whether one token may open more than may be open.
    pub(super) fn is_deep(&self) -> bool {
        matches!(self, Place::Json(json) if json.depth + TAIL_BYTES as u32 >= MAX_DEPTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(text: &str) -> bool {
        let mut place = Place::default();
        text.bytes().all(|byte| place.read(byte))
    }

    #[test]
    fn closing_tags_end_values_and_stand_in_none() {
        let open = "<｜DSML｜parameter name=\"x\" string=\"false\">";
        let close = "</｜DSML｜parameter>\n";
        for (value, read) in [
            ("{\"a\": [\"</\", \"\\\"</｜x\"]}", true),
            ("\"</｜DSML｜parameter>\"", false),
            ("[\"\\\\</|DSML|\"]", false),
            ("\"a\"", true),
            ("12", true),
        ] {
            let text = format!("{open}{value}{close}{open}[1]{close}");
            assert_eq!(reads(&text), read, "{value}");
        }
        let open = "<｜DSML｜parameter name=\"x\" string=\"true\">";
        assert!(reads(&format!("{open}a \" {{[ </ b{close}{open}{close}")));
        assert!(!reads(&format!("{open}</|DSML|")));
    }

    #[test]
    fn containers_are_open_up_to_a_number() {
        let open = "string=\"false\">";
        let depth = MAX_DEPTH as usize;
        assert!(reads(&format!("{open}{}", "[".repeat(depth))));
        assert!(!reads(&format!("{open}{}", "[{".repeat(depth))));
        assert!(reads(&format!("{open}{}", "[]".repeat(depth + 1))));
        assert!(reads(&format!("{open}\"{}\"", "[".repeat(depth + 1))));
    }
}
