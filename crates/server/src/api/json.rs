//! A request's JSON, read from its text where it is asked for.
//!
//! There is no tree of the body: a value is the piece of text that spells it. Members that nobody
//! reads are stepped over, and what reading makes is counted against an [`Allowance`] before memory
//! is taken for it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::api::invalid;
use crate::generation::Failure;
use crate::memory;

/// Levels behind which reading a text ends with an error.
const MAX_DEPTH: usize = 128;
/// Digits up to which every number is within the range of f64.
const SURE_DIGITS: usize = 300;

/// What reading a request may take of the memory that all requests share.
pub trait Allowance {
    /// Takes so many bytes more, until the request is done with.
    ///
    /// # Errors
    /// There are not so many.
    fn take(&self, n_bytes: usize) -> Result<(), Failure>;
}

/// The text of a request's body, known to be JSON.
#[derive(Clone)]
pub struct Document<'a> {
    text: Cow<'a, str>,
    allowance: Option<&'a dyn Allowance>,
}

/// The text of a JSON value in which every escaped surrogate has its partner.
///
/// # Errors
/// Text that is not one JSON value, is nested deeper than 128, or has a number beyond f64.
pub fn checked(text: &str) -> Result<Cow<'_, str>, String> {
    let text = ds4_text::json::paired(text);
    let mut reader = serde_json::Deserializer::from_str(&text);
    let read = IgnoredAny::deserialize(&mut reader).and_then(|_| reader.end());
    read.map_err(|e| e.to_string())?;
    check_parts(&text)?;
    Ok(text)
}

/// Checks what no reading of single values would notice: depth, and the range of numbers.
fn check_parts(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0usize);
    while let Some(byte) = bytes.get(at) {
        at += match byte {
            b'"' => {
                let mut end = at + 1;
                while bytes.get(end).is_some_and(|b| *b != b'"') {
                    end += if bytes[end] == b'\\' { 2 } else { 1 };
                }
                end + 1 - at
            }
            b'[' | b'{' => {
                depth += 1;
                if depth >= MAX_DEPTH {
                    return Err(format!("it is nested deeper than {} levels", MAX_DEPTH - 1));
                }
                1
            }
            b']' | b'}' => {
                depth -= 1;
                1
            }
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let n = bytes[at..].iter().take_while(|b| is_part(b)).count();
                let number = &text[at..at + n];
                let is_sure = n <= SURE_DIGITS && !number.contains(['e', 'E']);
                if !is_sure && !number.parse::<f64>().is_ok_and(f64::is_finite) {
                    return Err("a number is beyond the range of f64".to_owned());
                }
                n
            }
            _ => 1,
        };
    }
    Ok(())
}

impl<'a> Document<'a> {
    /// A text that [`checked`] gave, read within an allowance.
    pub fn within(text: &'a str, allowance: &'a dyn Allowance) -> Document<'a> {
        Document {
            text: Cow::Borrowed(text),
            allowance: Some(allowance),
        }
    }

    /// A text, read without a limit.
    ///
    /// # Errors
    /// As [`checked`].
    pub fn read(text: &'a str) -> Result<Document<'a>, String> {
        Ok(Document {
            text: checked(text)?,
            allowance: None,
        })
    }

    pub(crate) fn json(&self) -> Json<'_> {
        Json {
            raw: self.text.trim_matches([' ', '\t', '\r', '\n']),
            allowance: self.allowance,
        }
    }
}

impl From<&Value> for Document<'_> {
    fn from(value: &Value) -> Self {
        Document {
            text: Cow::Owned(value.to_string()),
            allowance: None,
        }
    }
}

/// The JSON type of a value; [`Kind::Nothing`] is null, and a member that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nothing,
    Flag,
    Number,
    Text,
    Array,
    Object,
}

/// A value of a request: its text.
#[derive(Clone, Copy)]
pub(crate) struct Json<'a> {
    raw: &'a str,
    allowance: Option<&'a dyn Allowance>,
}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw)
    }
}

impl<'a> Json<'a> {
    /// A value that was kept as text, read as a part of the same request as `self`.
    pub(crate) fn beside<'b>(self, raw: &'b str) -> Json<'b>
    where
        'a: 'b,
    {
        Json {
            raw,
            allowance: self.allowance,
        }
    }

    /// Its text.
    pub(crate) fn raw(self) -> &'a str {
        self.raw
    }

    pub(crate) fn kind(self) -> Kind {
        match self.raw.as_bytes().first() {
            Some(b't' | b'f') => Kind::Flag,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(b'"') => Kind::Text,
            Some(b'[') => Kind::Array,
            Some(b'{') => Kind::Object,
            _ => Kind::Nothing,
        }
    }

    pub(crate) fn as_bool(self) -> Option<bool> {
        match self.raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    pub(crate) fn as_u64(self) -> Option<u64> {
        self.raw.parse().ok()
    }

    pub(crate) fn as_i64(self) -> Option<i64> {
        self.raw.parse().ok()
    }

    pub(crate) fn as_f64(self) -> Option<f64> {
        let is_number = self.kind() == Kind::Number;
        is_number.then(|| self.raw.parse().ok()).flatten()
    }

    /// The text that a string spells.
    pub(crate) fn as_text(self) -> Option<Cow<'a, str>> {
        let Text(text) = match self.kind() {
            Kind::Text => serde_json::from_str(self.raw).ok()?,
            _ => return None,
        };
        Some(text)
    }

    /// The value itself, for what must be kept whatever it is.
    ///
    /// # Errors
    /// It would take more memory than there is.
    pub(crate) fn value(self) -> Result<Value, Failure> {
        self.take(memory::of_text(self.raw.as_bytes()) + self.raw.len())?;
        serde_json::from_str(self.raw).map_err(|_| malformed())
    }

    /// Shows `see` the items of an array, one after the other.
    ///
    /// # Errors
    /// Those of `see`.
    pub(crate) fn each(
        self,
        see: impl FnMut(Json<'a>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let items = Items {
            see,
            allowance: self.allowance,
            failure: None,
        };
        let mut reader = serde_json::Deserializer::from_str(self.raw);
        match reader.deserialize_seq(items) {
            Ok(Some(failure)) => Err(failure),
            Ok(None) => Ok(()),
            Err(_) => Err(malformed()),
        }
    }

    /// The members of an object in the order received. Of equal names the last value stands at the
    /// first one's place.
    pub(crate) fn members(self) -> Result<Vec<Member<'a>>, Failure> {
        let members = Members {
            allowance: self.allowance,
        };
        let mut reader = serde_json::Deserializer::from_str(self.raw);
        match reader.deserialize_map(members) {
            Ok(members) => Ok(without_repetition(members?)),
            Err(_) => Err(malformed()),
        }
    }

    /// Takes memory for what is made of the request.
    pub(crate) fn take(self, n_bytes: usize) -> Result<(), Failure> {
        take(self.allowance, n_bytes)
    }
}

fn take(allowance: Option<&dyn Allowance>, n_bytes: usize) -> Result<(), Failure> {
    allowance.map_or(Ok(()), |allowance| allowance.take(n_bytes))
}

/// Of text that was checked, this does not come.
fn malformed() -> Failure {
    let mut failure = invalid("", "the body is not JSON.");
    failure.param = None;
    failure
}

/// A member of an object.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) value: Json<'a>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Items<'a, F> {
    see: F,
    allowance: Option<&'a dyn Allowance>,
    failure: Option<Failure>,
}

impl<'a, F: FnMut(Json<'a>) -> Result<(), Failure>> Visitor<'a> for Items<'a, F> {
    type Value = Option<Failure>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut items: A) -> Result<Self::Value, A::Error> {
        while let Some(item) = items.next_element::<&RawValue>()? {
            let item = Json {
                raw: item.get(),
                allowance: self.allowance,
            };
            if self.failure.is_none() {
                self.failure = (self.see)(item).err();
            }
        }
        Ok(self.failure)
    }
}

struct Members<'a> {
    allowance: Option<&'a dyn Allowance>,
}

impl<'a> Visitor<'a> for Members<'a> {
    type Value = Result<Vec<Member<'a>>, Failure>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<Member<'a>> = Vec::new();
        let mut failure = None;
        while let Some(Text(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            if failure.is_some() {
                continue;
            }
            if members.len() == members.capacity() {
                let n_more = members.len().max(4);
                // Some names are texts of their own.
                let n_bytes = n_more * size_of::<Member<'_>>() + name.len();
                failure = take(self.allowance, n_bytes).err();
                if failure.is_some() {
                    continue;
                }
                members.reserve_exact(n_more);
            }
            members.push(Member {
                name,
                value: Json {
                    raw: value.get(),
                    allowance: self.allowance,
                },
            });
        }
        Ok(failure.map_or(Ok(members), Err))
    }
}

fn without_repetition(mut members: Vec<Member<'_>>) -> Vec<Member<'_>> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by(|a, b| members[*a].name.cmp(&members[*b].name));
    let mut repeated = Vec::new();
    for same in order.chunk_by(|a, b| members[*a].name == members[*b].name) {
        if let [first, .., last] = same {
            repeated.push((*first, *last));
        }
    }
    if repeated.is_empty() {
        return members;
    }
    let mut gone = vec![false; members.len()];
    for same in order.chunk_by(|a, b| members[*a].name == members[*b].name) {
        same[1..].iter().for_each(|i| gone[*i] = true);
    }
    for (first, last) in repeated {
        members[first].value = members[last].value;
    }
    let mut places = gone.into_iter();
    members.retain(|_| !places.next().unwrap_or(false));
    members
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~\"\\\\\\[\\{,:é\u{1F600}\n]{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec(("[a-z\"\\\\,:]{0,8}", inner), 0..6)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    /// The tree that reading every part gives.
    fn rebuilt(json: Json<'_>) -> Value {
        match json.kind() {
            Kind::Nothing => Value::Null,
            Kind::Flag => json.as_bool().expect("a flag").into(),
            Kind::Number => json.as_i64().expect("an integer").into(),
            Kind::Text => json.as_text().expect("a text").into(),
            Kind::Array => {
                let mut items = Vec::new();
                let read = json.each(|item| {
                    items.push(rebuilt(item));
                    Ok(())
                });
                read.expect("items");
                items.into()
            }
            Kind::Object => {
                let members = json.members().expect("members").into_iter();
                members
                    .map(|m| (m.name.into_owned(), rebuilt(m.value)))
                    .collect()
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_read_part_by_part_is_what_was_sent(value in value(), indent in any::<bool>()) {
            let text = match indent {
                true => serde_json::to_string_pretty(&value).expect("text"),
                false => value.to_string(),
            };
            let document = Document::read(&text).expect("JSON");
            prop_assert_eq!(rebuilt(document.json()), value.clone());
            prop_assert_eq!(document.json().value().expect("no limit"), value);
        }
    }

    #[test]
    fn of_equal_names_the_last_value_stands_at_the_first_place() {
        let text = r#"{"b": 1, "a": 2, "\u0062": 3, "c": 4, "a": 5, "b": 6}"#;
        let document = Document::read(text).expect("JSON");
        let read = rebuilt(document.json());
        assert_eq!(read.to_string(), r#"{"b":6,"a":5,"c":4}"#);
        assert_eq!(read, ds4_text::json::parse(text).expect("JSON"));
    }

    #[test]
    fn what_is_no_json_or_too_deep_is_refused_as_by_a_reader_of_trees() {
        for text in [
            "",
            "{",
            "[1,]",
            "nul",
            "1 2",
            "\"\u{1}\"",
            "NaN",
            "{\"a\" 1}",
            "\"\\x\"",
        ] {
            assert!(checked(text).is_err(), "{text:?}");
            assert!(ds4_text::json::parse(text).is_err(), "{text:?}");
        }
        for depth in [100, 126, 127, 128, 129, 5000] {
            let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let tree = ds4_text::json::parse(&text).is_ok();
            assert_eq!(checked(&text).is_ok(), tree, "{depth}");
        }
        let brackets = format!("\"{}\"", "[{\\\"".repeat(500));
        assert!(checked(&brackets).is_ok(), "they are text");
        let lone = checked(r#"["\ud800", "\ud83d\ude00"]"#).expect("mended");
        assert_eq!(lone, r#"["\ufffd", "\ud83d\ude00"]"#);
    }

    #[test]
    fn numbers_that_no_f64_holds_are_refused_wherever_they_stand() {
        let long = format!("[{}]", "9".repeat(310));
        for (text, good) in [
            (
                r#"{"a": [1, -2.5e300, 123456789012345678901234567890]}"#,
                true,
            ),
            (r#"{"a": [{"b": 1e999}]}"#, false),
            ("-1e309", false),
            ("1e-999", true),
            (r#"{"a": "1e999"}"#, true),
            (&long, false),
        ] {
            assert_eq!(checked(text).is_ok(), good, "{text}");
        }
    }

    /// Gives out so many bytes.
    struct Purse(Cell<usize>);

    impl Allowance for Purse {
        fn take(&self, n_bytes: usize) -> Result<(), Failure> {
            let left = self.0.get().checked_sub(n_bytes);
            self.0.set(left.ok_or_else(|| invalid("", "too much"))?);
            Ok(())
        }
    }

    #[test]
    fn members_that_nobody_reads_take_nothing_and_those_that_are_read_are_counted() {
        let small = vec![json!(1); 100_000];
        let text = json!({"ignored": small, "also": {"a": small}, "kept": small}).to_string();
        let purse = Purse(Cell::new(1000));
        let document = Document::within(&text, &purse);
        let members = document.json().members().expect("three members");
        assert!(members[2].value.value().is_err(), "a tree of the third");
        let mut n = 0;
        let counted = members[0].value.each(|_| {
            n += 1;
            Ok(())
        });
        assert!(counted.is_ok() && n == 100_000);
        // An object of many members is refused while it is being read.
        let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(10_000));
        let purse = Purse(Cell::new(10_000));
        assert!(Document::within(&many, &purse).json().members().is_err());
    }
}
