//! Reading a request's JSON, with failures that say where.

use std::borrow::Cow;
use std::cell::OnceCell;

use serde_json::Value;

use super::json::{Json, Kind, Member};
use crate::api::{invalid, unsupported};
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
    json: Json<'a>,
    members: Vec<Field<'a>>,
    path: String,
    style: PathStyle,
}

/// A member, with its text once somebody asked for it and it was not to be had as it stands.
#[derive(Clone, Debug)]
struct Field<'a> {
    name: Cow<'a, str>,
    value: Json<'a>,
    text: OnceCell<Cow<'a, str>>,
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub(crate) fn of_body(body: Json<'a>, style: PathStyle) -> Result<Fields<'a>, Failure> {
        Fields::at(body, String::new(), style)
    }

    fn at(json: Json<'a>, path: String, style: PathStyle) -> Result<Fields<'a>, Failure> {
        if json.kind() != Kind::Object {
            let mut failure = mismatch(&path, Some(json), "an object");
            if path.is_empty() {
                failure.message = format!("the body{}", failure.message);
                failure.param = None;
            }
            return Err(failure);
        }
        let members = json.members()?;
        json.take(
            size_of::<Fields<'_>>() + path.len() + members.len() * size_of::<OnceCell<Cow<str>>>(),
        )?;
        let field = |Member { name, value }| Field {
            name,
            value,
            text: OnceCell::new(),
        };
        Ok(Fields {
            json,
            members: members.into_iter().map(field).collect(),
            path,
            style,
        })
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

    /// The object itself, for what must be kept as it was received.
    pub(crate) fn json(&self) -> Json<'a> {
        self.json
    }

    /// The members in the order received, those included that are null.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, Json<'a>)> {
        self.members.iter().map(|m| (&*m.name, m.value))
    }

    fn field(&self, name: &str) -> Option<&Field<'a>> {
        let field = self.members.iter().find(|field| field.name == name)?;
        (field.value.kind() != Kind::Nothing).then_some(field)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Json<'a>> {
        self.field(name).map(|field| field.value)
    }

    /// What a member is; [`Kind::Nothing`] where there is none.
    pub(crate) fn kind(&self, name: &str) -> Kind {
        self.get(name).map_or(Kind::Nothing, Json::kind)
    }

    /// A member as a value of its own, for what must be kept whatever it is.
    pub(crate) fn value(&self, name: &str) -> Result<Option<Value>, Failure> {
        self.get(name).map(Json::value).transpose()
    }

    /// A member that is not what it must be.
    pub(crate) fn mismatch(&self, name: &str, expected: &str) -> Failure {
        mismatch(&self.path_of(name), self.get(name), expected)
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

    pub(crate) fn optional_str(&self, name: &str) -> Result<Option<&str>, Failure> {
        let Some(field) = self.field(name) else {
            return Ok(None);
        };
        if let Some(text) = field.text.get() {
            return Ok(Some(text));
        }
        match field.value.as_text() {
            Some(text) => Ok(Some(field.text.get_or_init(|| text))),
            None => Err(self.mismatch(name, "a string")),
        }
    }

    pub(crate) fn str(&self, name: &str) -> Result<&str, Failure> {
        self.optional_str(name)?
            .ok_or_else(|| self.mismatch(name, "a string"))
    }

    /// A text that may be long, of which nothing is kept here.
    pub(crate) fn text(&self, name: &str) -> Result<String, Failure> {
        let text = self.get(name).and_then(Json::as_text);
        text.map(Cow::into_owned)
            .ok_or_else(|| self.mismatch(name, "a string"))
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Failure> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.mismatch(name, "true or false")),
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

    /// The items of a list; `None` where there is none.
    pub(crate) fn array(&self, name: &str) -> Result<Option<Vec<Json<'a>>>, Failure> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        let mut items = Vec::new();
        list.each(|item| {
            list.take(size_of::<Json<'_>>())?;
            items.push(item);
            Ok(())
        })?;
        Ok(Some(items))
    }

    /// The words of a list in which others are ignored; none where there is no list.
    pub(crate) fn words(&self, name: &str) -> Result<Vec<Cow<'a, str>>, Failure> {
        let mut words = Vec::new();
        if let Some(list) = self.list(name)? {
            list.each(|item| {
                if let Some(word) = item.as_text() {
                    list.take(size_of::<Cow<'_, str>>() + word.len())?;
                    words.push(word);
                }
                Ok(())
            })?;
        }
        Ok(words)
    }

    /// A list as it stands; `None` where there is none.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Json<'a>>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(list) if list.kind() == Kind::Array => Ok(Some(list)),
            Some(_) => Err(self.mismatch(name, "an array")),
        }
    }

    /// The objects of a list; none where there is no list.
    pub(crate) fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Failure> {
        let mut objects = Vec::new();
        if let Some(list) = self.list(name)? {
            list.each(|item| {
                objects.push(self.item(name, objects.len(), item)?);
                Ok(())
            })?;
        }
        Ok(objects)
    }

    /// Member `i` of the list `name`.
    pub(crate) fn item<'b>(
        &self,
        name: &str,
        i: usize,
        item: Json<'b>,
    ) -> Result<Fields<'b>, Failure> {
        let path = match self.style {
            PathStyle::Dots => format!("{}.{i}", self.path_of(name)),
            PathStyle::Brackets => format!("{}[{i}]", self.path_of(name)),
        };
        Fields::at(item, path, self.style)
    }
}

fn mismatch(path: &str, found: Option<Json<'_>>, expected: &str) -> Failure {
    // Numbers and words may be quoted from a request, prompt text may not.
    let raw = found.map_or("null", Json::raw);
    let found = match found.map_or(Kind::Nothing, Json::kind) {
        Kind::Nothing => "nothing".to_owned(),
        Kind::Flag => raw.to_owned(),
        Kind::Number => short(raw),
        Kind::Text => "a string".to_owned(),
        Kind::Array => "an array".to_owned(),
        Kind::Object => "an object".to_owned(),
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
