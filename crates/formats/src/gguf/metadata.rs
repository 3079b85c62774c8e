//! The key-value section.

use std::collections::HashMap;

use super::error::Error;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array; all elements have one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

macro_rules! for_each_variant {
    ($of:ident, $value:expr, $v:ident => $body:expr) => {
        match $value {
            $of::U8($v) => $body,
            $of::I8($v) => $body,
            $of::U16($v) => $body,
            $of::I16($v) => $body,
            $of::U32($v) => $body,
            $of::I32($v) => $body,
            $of::F32($v) => $body,
            $of::Bool($v) => $body,
            $of::String($v) => $body,
            $of::Array($v) => $body,
            $of::U64($v) => $body,
            $of::I64($v) => $body,
            $of::F64($v) => $body,
        }
    };
}

macro_rules! type_ids {
    ($($variant:ident = $id:literal $name:literal),* $(,)?) => {
        impl Value {
            /// The number of the type in the file.
            pub const fn type_id(&self) -> u32 {
                match self { $(Value::$variant(_) => $id,)* }
            }

            /// Name of the type: `u32`, `string`, `array` and so on.
            pub const fn type_name(&self) -> &'static str {
                match self { $(Value::$variant(_) => $name,)* }
            }
        }

        impl Array {
            /// The number of the element type in the file.
            pub const fn type_id(&self) -> u32 {
                match self { $(Array::$variant(_) => $id,)* }
            }

            /// Name of the element type.
            pub const fn type_name(&self) -> &'static str {
                match self { $(Array::$variant(_) => $name,)* }
            }
        }
    };
}

type_ids! {
    U8 = 0 "u8", I8 = 1 "i8", U16 = 2 "u16", I16 = 3 "i16", U32 = 4 "u32", I32 = 5 "i32",
    F32 = 6 "f32", Bool = 7 "bool", String = 8 "string", Array = 9 "array", U64 = 10 "u64",
    I64 = 11 "i64", F64 = 12 "f64",
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        for_each_variant!(Array, self, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The integers of an integer array of any width.
    fn integers(&self) -> Option<Box<dyn ExactSizeIterator<Item = i128> + '_>> {
        fn widen<T: Copy + Into<i128>>(v: &[T]) -> Box<dyn ExactSizeIterator<Item = i128> + '_> {
            Box::new(v.iter().map(|&v| v.into()))
        }
        Some(match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::U64(v) => widen(v),
            Array::I64(v) => widen(v),
            Array::F32(_) | Array::Bool(_) | Array::String(_) | Array::Array(_) | Array::F64(_) => {
                return None;
            }
        })
    }
}

impl Value {
    /// The integer, whatever its width.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            Value::F32(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::F64(_) => {
                return None;
            }
        })
    }

    /// Type and value on one line, long strings and arrays cut.
    pub fn summary(&self) -> String {
        const MAX_CHARS: usize = 40;
        const MAX_ELEMENTS: usize = 6;
        match self {
            Value::String(s) => match s.char_indices().nth(MAX_CHARS) {
                Some((end, _)) => {
                    format!("string {:?}... ({} bytes)", &s[..end], s.len())
                }
                None => format!("string {s:?}"),
            },
            Value::Array(array) => {
                let head = for_each_variant!(Array, array, v => {
                    let head: Vec<String> =
                        v.iter().take(MAX_ELEMENTS).map(Element::brief).collect();
                    head.join(", ")
                });
                let more = if array.len() > MAX_ELEMENTS {
                    ", ..."
                } else {
                    ""
                };
                format!(
                    "array of {} {} [{head}{more}]",
                    array.len(),
                    array.type_name()
                )
            }
            Value::U8(v) => format!("u8 {v}"),
            Value::I8(v) => format!("i8 {v}"),
            Value::U16(v) => format!("u16 {v}"),
            Value::I16(v) => format!("i16 {v}"),
            Value::U32(v) => format!("u32 {v}"),
            Value::I32(v) => format!("i32 {v}"),
            Value::F32(v) => format!("f32 {v}"),
            Value::Bool(v) => format!("bool {v}"),
            Value::U64(v) => format!("u64 {v}"),
            Value::I64(v) => format!("i64 {v}"),
            Value::F64(v) => format!("f64 {v}"),
        }
    }
}

/// How an array element looks in a summary.
trait Element {
    fn brief(&self) -> String;
}

macro_rules! elements_by_display {
    ($($ty:ty)*) => { $(impl Element for $ty {
        fn brief(&self) -> String {
            self.to_string()
        }
    })* };
}

elements_by_display!(u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64);

impl Element for String {
    fn brief(&self) -> String {
        match self.char_indices().nth(12) {
            Some((end, _)) => format!("{:?}...", &self[..end]),
            None => format!("{self:?}"),
        }
    }
}

impl Element for Array {
    fn brief(&self) -> String {
        format!("array of {} {}", self.len(), self.type_name())
    }
}

macro_rules! values_from {
    ($($ty:ty => $variant:ident,)*) => { $(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Value {
                Value::$variant(value)
            }
        }

        impl From<Vec<$ty>> for Value {
            fn from(values: Vec<$ty>) -> Value {
                Value::Array(Array::$variant(values))
            }
        }
    )* };
}

values_from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, String => String,
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::String(value.to_owned())
    }
}

/// The metadata of a file: keys and values in the order of the file, each key once.
///
/// The typed getters accept any integer type where an integer is expected, because files by
/// different tools differ in that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// No metadata.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Sets a value; a new key goes to the end, a known one keeps its place.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        match self.index.get(&key) {
            Some(&i) => self.entries[i].1 = value.into(),
            None => {
                self.index.insert(key.clone(), self.entries.len());
                self.entries.push((key, value.into()));
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Whether a key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// An integer that fits `u32`.
    ///
    /// # Errors
    /// The key is missing ([`Error::MissingKey`], see [`super::optional`]) or its value is
    /// something else; so for all getters.
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        self.typed(key, "an integer from 0 to 4294967295", |value| {
            value.as_integer()?.try_into().ok()
        })
    }

    /// An integer that fits `u64`.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn u64(&self, key: &str) -> Result<u64, Error> {
        self.typed(key, "an integer from 0 to 2^64 - 1", |value| {
            value.as_integer()?.try_into().ok()
        })
    }

    /// A float, rounded to f32 if it is wider; integers count as floats.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        self.typed(key, "a number", |value| match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => Some(value.as_integer()? as f32),
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        self.typed(key, "a boolean", |value| match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        self.typed(key, "a string", |value| match value {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// An array of integers that fit `u32`.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>, Error> {
        self.array(key, "an array of integers from 0 to 4294967295", |array| {
            array.integers()?.map(|v| v.try_into().ok()).collect()
        })
    }

    /// An array of integers that fit `i32`.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, Error> {
        self.array(
            key,
            "an array of integers from -2147483648 to 2147483647",
            |array| array.integers()?.map(|v| v.try_into().ok()).collect(),
        )
    }

    /// An array of floats, rounded to f32 if they are wider; integers count as floats.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, Error> {
        self.array(key, "an array of numbers", |array| match array {
            Array::F32(v) => Some(v.clone()),
            Array::F64(v) => Some(v.iter().map(|&v| v as f32).collect()),
            _ => Some(array.integers()?.map(|v| v as f32).collect()),
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// As [`Metadata::u32`].
    pub fn strs(
        &self,
        key: &str,
    ) -> Result<impl ExactSizeIterator<Item = &str> + DoubleEndedIterator + Clone, Error> {
        self.array(key, "an array of strings", |array| match array {
            Array::String(v) => Some(v.iter().map(String::as_str)),
            _ => None,
        })
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Array) -> Option<T>,
    ) -> Result<T, Error> {
        self.typed(key, expected, |value| match value {
            Value::Array(array) => read(array),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, Error> {
        let value = self.get(key).ok_or_else(|| Error::MissingKey {
            key: key.into(),
            expected,
        })?;
        read(value).ok_or_else(|| Error::WrongValue {
            key: key.into(),
            found: value.summary(),
            expected,
        })
    }
}
