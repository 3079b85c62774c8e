//! One JSON value, byte by byte.

use super::closing::{Closing, Read};

/// Containers that may be open at once; readers stop at 128.
const MAX_DEPTH: u8 = 100;
/// White space in a row, so that a value does not end in nothing else.
const MAX_BLANKS: u8 = 64;

/// Kinds of JSON values, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) const NONE: Kinds = Kinds(0);
    pub(super) const STRING: Kinds = Kinds(1);
    pub(super) const INTEGER: Kinds = Kinds(2);
    /// Integers too.
    pub(super) const NUMBER: Kinds = Kinds(2 | 4);
    pub(super) const BOOLEAN: Kinds = Kinds(8);
    pub(super) const NULL: Kinds = Kinds(16);
    pub(super) const OBJECT: Kinds = Kinds(32);
    pub(super) const ARRAY: Kinds = Kinds(64);
    pub(super) const ANY: Kinds = Kinds(127);

    pub(super) fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    pub(super) fn without(self, other: Kinds) -> Kinds {
        Kinds(self.0 & !other.0)
    }

    pub(super) fn has(self, other: Kinds) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The beginning of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Json {
    place: Place,
    /// The kinds that the value itself may be; those inside may be any.
    kinds: Kinds,
    depth: u8,
    /// Bit `d`: whether the container at depth `d` is an object.
    objects: u128,
    /// White space at the end.
    n_blanks: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Before a value.
    Value,
    /// Behind `[`.
    FirstItem,
    /// Behind `{`.
    FirstKey,
    /// Behind `,` in an object.
    Key,
    /// Behind a key.
    Colon,
    /// In a string; `closing` is what its end looks like to a reader of tags.
    Text {
        is_key: bool,
        closing: Closing,
    },
    /// Behind a backslash in a string.
    Escape {
        is_key: bool,
    },
    /// So many hexadecimal digits before the end of an escape.
    Hex {
        is_key: bool,
        n_left: u8,
    },
    /// Behind so many letters of a word.
    Word {
        word: u8,
        n: u8,
    },
    Minus,
    Zero,
    Digits,
    Point,
    Decimals,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// Behind a value.
    Behind,
}

const WORDS: [&[u8]; 3] = [b"true", b"false", b"null"];

impl Json {
    /// Before a value of one of these kinds.
    pub(super) fn new(kinds: Kinds) -> Json {
        Json {
            place: Place::Value,
            kinds,
            depth: 0,
            objects: 0,
            n_blanks: 0,
        }
    }

    /// Whether the value may end here.
    pub(super) fn is_complete(self) -> bool {
        let ends_number = matches!(
            self.place,
            Place::Zero | Place::Digits | Place::Decimals | Place::ExponentDigits
        );
        self.depth == 0 && (ends_number || self.place == Place::Behind)
    }

    /// Whether the place is inside a string, where a byte that is none of `"`, `\`, `<` and the
    /// control characters changes nothing.
    pub(super) fn is_in_plain_text(self) -> bool {
        let closing = Closing::Nowhere;
        matches!(self.place, Place::Text { closing: c, .. } if c == closing)
    }

    /// The value with one more byte, if it can have it.
    pub(super) fn read(self, byte: u8) -> Option<Json> {
        let at = |place| {
            Some(Json {
                place,
                n_blanks: 0,
                ..self
            })
        };
        match (self.place, byte) {
            (
                Place::Value
                | Place::FirstItem
                | Place::FirstKey
                | Place::Key
                | Place::Colon
                | Place::Behind,
                b' ' | b'\n' | b'\r' | b'\t',
            ) => (self.depth > 0 && self.n_blanks < MAX_BLANKS).then_some(Json {
                n_blanks: self.n_blanks + 1,
                ..self
            }),
            (Place::FirstItem, b']') => self.leave(),
            (Place::Value | Place::FirstItem, _) => self.begin(byte),
            (Place::FirstKey, b'}') => self.leave(),
            (Place::FirstKey | Place::Key, b'"') => at(Place::Text {
                is_key: true,
                closing: Closing::default(),
            }),
            (Place::Colon, b':') => at(Place::Value),
            (Place::Text { is_key: true, .. }, b'"') => at(Place::Colon),
            (Place::Text { is_key: false, .. }, b'"') => at(Place::Behind),
            (Place::Text { is_key, .. }, b'\\') => at(Place::Escape { is_key }),
            (Place::Text { is_key, closing }, b' '..) => match closing.read(byte) {
                Read::Text(closing) => at(Place::Text { is_key, closing }),
                Read::Closes | Read::Lookalike => None,
            },
            (Place::Escape { is_key }, b'u') => at(Place::Hex { is_key, n_left: 4 }),
            (Place::Escape { is_key }, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                at(Place::Text {
                    is_key,
                    closing: Closing::default(),
                })
            }
            (Place::Hex { is_key, n_left }, _) if byte.is_ascii_hexdigit() => match n_left {
                1 => at(Place::Text {
                    is_key,
                    closing: Closing::default(),
                }),
                _ => at(Place::Hex {
                    is_key,
                    n_left: n_left - 1,
                }),
            },
            (Place::Word { word, n }, _) => {
                let letters = WORDS[usize::from(word)];
                if letters[usize::from(n)] != byte {
                    None
                } else if usize::from(n) + 1 == letters.len() {
                    at(Place::Behind)
                } else {
                    at(Place::Word { word, n: n + 1 })
                }
            }
            (Place::Minus, b'0') => at(Place::Zero),
            (Place::Minus, b'1'..=b'9') | (Place::Digits, b'0'..=b'9') => at(Place::Digits),
            (Place::Zero | Place::Digits, b'.') if self.may_be_fraction() => at(Place::Point),
            (Place::Point | Place::Decimals, b'0'..=b'9') => at(Place::Decimals),
            (Place::Zero | Place::Digits | Place::Decimals, b'e' | b'E')
                if self.may_be_fraction() =>
            {
                at(Place::Exponent)
            }
            (Place::Exponent, b'+' | b'-') => at(Place::ExponentSign),
            (Place::Exponent | Place::ExponentSign | Place::ExponentDigits, b'0'..=b'9') => {
                at(Place::ExponentDigits)
            }
            (
                Place::Behind
                | Place::Zero
                | Place::Digits
                | Place::Decimals
                | Place::ExponentDigits,
                b',',
            ) if self.depth > 0 => at(if self.is_in_object() {
                Place::Key
            } else {
                Place::Value
            }),
            (
                Place::Behind
                | Place::Zero
                | Place::Digits
                | Place::Decimals
                | Place::ExponentDigits,
                b'}' | b']',
            ) if self.depth > 0 && self.is_in_object() == (byte == b'}') => self.leave(),
            (
                Place::Zero | Place::Digits | Place::Decimals | Place::ExponentDigits,
                b' ' | b'\n' | b'\r' | b'\t',
            ) if self.depth > 0 => Some(Json {
                place: Place::Behind,
                n_blanks: 1,
                ..self
            }),
            _ => None,
        }
    }

    fn kinds_here(self) -> Kinds {
        if self.depth == 0 {
            self.kinds
        } else {
            Kinds::ANY
        }
    }

    fn may_be_fraction(self) -> bool {
        self.kinds_here().has(Kinds::NUMBER)
    }

    fn is_in_object(self) -> bool {
        self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1
    }

    /// The first byte of a value.
    fn begin(self, byte: u8) -> Option<Json> {
        let (kind, place) = match byte {
            b'"' => (
                Kinds::STRING,
                Place::Text {
                    is_key: false,
                    closing: Closing::default(),
                },
            ),
            b't' => (Kinds::BOOLEAN, Place::Word { word: 0, n: 1 }),
            b'f' => (Kinds::BOOLEAN, Place::Word { word: 1, n: 1 }),
            b'n' => (Kinds::NULL, Place::Word { word: 2, n: 1 }),
            b'-' => (Kinds::INTEGER, Place::Minus),
            b'0' => (Kinds::INTEGER, Place::Zero),
            b'1'..=b'9' => (Kinds::INTEGER, Place::Digits),
            b'[' => (Kinds::ARRAY, Place::FirstItem),
            b'{' => (Kinds::OBJECT, Place::FirstKey),
            _ => return None,
        };
        if !self.kinds_here().has(kind) {
            return None;
        }
        let mut next = Json {
            place,
            n_blanks: 0,
            ..self
        };
        if matches!(byte, b'[' | b'{') {
            if self.depth == MAX_DEPTH {
                return None;
            }
            let bit = 1 << self.depth;
            next.objects = match byte {
                b'{' => self.objects | bit,
                _ => self.objects & !bit,
            };
            next.depth += 1;
        }
        Some(next)
    }

    fn leave(self) -> Option<Json> {
        let depth = self.depth.checked_sub(1)?;
        Some(Json {
            place: Place::Behind,
            depth,
            // One state for what is over, however it was.
            objects: self.objects & !(1 << depth),
            n_blanks: 0,
            kinds: self.kinds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(kinds: Kinds, text: &str) -> bool {
        let mut json = Json::new(kinds);
        text.bytes().all(|byte| match json.read(byte) {
            Some(next) => {
                json = next;
                true
            }
            None => false,
        }) && json.is_complete()
    }

    #[test]
    fn what_is_read_is_what_a_json_reader_takes() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        let mut texts: Vec<String> = [
            "0",
            "-0",
            "10",
            "01",
            "-",
            "1.5",
            "1.",
            ".5",
            "1e5",
            "1E+05",
            "1e",
            "-1.0e-9",
            "true",
            "tru",
            "truee",
            "false",
            "null",
            "nul",
            "\"\"",
            "\"a\\n\\u00e9\\/\"",
            "\"\\x\"",
            "\"\\u00g0\"",
            "\"a\nb\"",
            "\"é😀\"",
            "[]",
            "[1]",
            "[1,]",
            "[,]",
            "[1 , 2]",
            "[1 2]",
            "{}",
            "{\"a\":1}",
            "{\"a\": [true, {\"b\": null}], \"c\": -2.5}",
            "{\"a\"}",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":1]",
            "[1}",
            "[[],[{}]]",
            "[\n  1\n]",
            "[\"<a>\", \"</b>\"]",
            "",
            "1 2",
            "[1]x",
            "\"a",
            "{\"a\":}",
        ]
        .map(str::to_owned)
        .into();
        texts.extend([deep(100), deep(101)]);
        for text in texts {
            let expected = ds4_text::json::parse(&text).is_ok() && text != deep(101);
            assert_eq!(reads(Kinds::ANY, &text), expected, "{text}");
        }
        assert!(!reads(Kinds::ANY, " 1"), "nothing stands before a value");
        assert!(!reads(Kinds::ANY, &format!("[{}]", " ".repeat(65))));
        assert!(
            !reads(Kinds::ANY, "\"</｜DSML｜parameter>\""),
            "no tag in a string"
        );
    }

    #[test]
    fn a_value_is_of_its_kind() {
        for (kinds, takes, refuses) in [
            (
                Kinds::INTEGER,
                vec!["1", "-20"],
                vec!["1.5", "1e3", "true", "\"1\""],
            ),
            (Kinds::NUMBER, vec!["1", "1.5", "1e3"], vec!["null", "[]"]),
            (Kinds::BOOLEAN, vec!["true", "false"], vec!["null", "1"]),
            (Kinds::ARRAY, vec!["[1.5, \"a\", {}]"], vec!["{}", "1"]),
            (
                Kinds::OBJECT.or(Kinds::NULL),
                vec!["{\"a\": 1.5}", "null"],
                vec!["[]", "true"],
            ),
        ] {
            for text in takes {
                assert!(reads(kinds, text), "{text}");
            }
            for text in refuses {
                assert!(!reads(kinds, text), "{text}");
            }
        }
    }
}
