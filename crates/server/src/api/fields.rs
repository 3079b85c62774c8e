//! Reading a request's JSON, with failures that say where.

use serde_json::{Map, Value};

use crate::api::{invalid, kind, unsupported};
use crate::generation::Failure;

/// How an API writes the place of a list's member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathStyle {
    /// `messages.3.role`
    Dots,
    /// `input[3].role`
    Brackets,
}

/// A JSON object of a request and where it stands. A member that is null counts as absent.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    members: &'a Map<String, Value>,
    path: String,
    style: PathStyle,
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub(crate) fn of_body(body: &'a Value, style: PathStyle) -> Result<Fields<'a>, Failure> {
        Fields::at(body, String::new(), style)
    }

    fn at(value: &'a Value, path: String, style: PathStyle) -> Result<Fields<'a>, Failure> {
        match value {
            Value::Object(members) => Ok(Fields {
                members,
                path,
                style,
            }),
            other => {
                let mut failure = mismatch(&path, other, "an object");
                if path.is_empty() {
                    failure.message = format!("the body{}", failure.message);
                    failure.param = None;
                }
                Err(failure)
            }
        }
    }

    /// Where a member stands.
    pub(crate) fn path_of(&self, name: &str) -> String {
        match self.path.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.path),
        }
    }

    /// Where this object stands.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The members in the order received, those included that are null.
    pub(crate) fn members(&self) -> &'a Map<String, Value> {
        self.members
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// A member that is not what it must be.
    pub(crate) fn mismatch(&self, name: &str, expected: &str) -> Failure {
        let found = self.members.get(name).unwrap_or(&Value::Null);
        mismatch(&self.path_of(name), found, expected)
    }

    /// A member whose value is one of a few words, and is none of them.
    pub(crate) fn unknown_word(&self, name: &str, found: &str, expected: &str) -> Failure {
        let path = self.path_of(name);
        let found = short(found);
        invalid(
            &path,
            format!("{path}: found \"{found}\", expected {expected}."),
        )
    }

    /// A member that asks for what is not done.
    pub(crate) fn unsupported(&self, name: &str, why: &str) -> Failure {
        let path = self.path_of(name);
        unsupported(&path, format!("{path}: {why}."))
    }

    pub(crate) fn optional_str(&self, name: &str) -> Result<Option<&'a str>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.mismatch(name, "a string")),
        }
    }

    pub(crate) fn str(&self, name: &str) -> Result<&'a str, Failure> {
        self.optional_str(name)?
            .ok_or_else(|| self.mismatch(name, "a string"))
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Failure> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.mismatch(name, "true or false")),
        }
    }

    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>, Failure> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match count {
            Some(count) => Ok(Some(count)),
            None => Err(self.mismatch(name, "an integer from 0")),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number as f32)),
                _ => Err(self.mismatch(name, "a number")),
            },
        }
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => Fields::at(value, self.path_of(name), self.style).map(Some),
        }
    }

    pub(crate) fn array(&self, name: &str) -> Result<Option<&'a [Value]>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(self.mismatch(name, "an array")),
        }
    }

    /// The objects of a list; none where there is no list.
    pub(crate) fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Failure> {
        let items = self.array(name)?.unwrap_or_default();
        items
            .iter()
            .enumerate()
            .map(|(i, item)| self.item(name, i, item))
            .collect()
    }

    /// Member `i` of the list `name`.
    pub(crate) fn item(
        &self,
        name: &str,
        i: usize,
        item: &'a Value,
    ) -> Result<Fields<'a>, Failure> {
        let path = match self.style {
            PathStyle::Dots => format!("{}.{i}", self.path_of(name)),
            PathStyle::Brackets => format!("{}[{i}]", self.path_of(name)),
        };
        Fields::at(item, path, self.style)
    }
}

fn mismatch(path: &str, found: &Value, expected: &str) -> Failure {
    // Numbers and words may be quoted from a request, prompt text may not.
    let found = match found {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => short(&number.to_string()),
        other => kind(other).to_owned(),
    };
    invalid(path, format!("{path}: found {found}, expected {expected}."))
}

/// At most 64 characters of a word.
fn short(word: &str) -> String {
    match word.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    }
}
