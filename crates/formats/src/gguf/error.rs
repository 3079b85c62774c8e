//! What can be wrong with a GGUF file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::{GgmlType, ShapeError};

/// Why a GGUF file cannot be used: one line with what was found, what was expected, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The error belongs to this file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The system could not open or map a file.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// The file does not begin like a GGUF file.
    #[error(
        "not a GGUF file: it begins with \"{}\", expected \"GGUF\"; \
         check that the download is complete and is the model itself",
        found.escape_ascii()
    )]
    Magic {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// The file was written for big-endian machines.
    #[error("big-endian GGUF file (version {version}); use the little-endian file")]
    BigEndian {
        /// Version, read the other way round.
        version: u32,
    },
    /// The version is unknown.
    #[error("GGUF version {found}, expected 2 or 3; convert the file with current tools")]
    Version {
        /// Version in the file.
        found: u32,
    },
    /// The file ends too early.
    #[error(
        "the file ends within {what}: {needed} bytes needed at byte {at}, {available} left; \
         the file is damaged or its download incomplete"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Position in the file, bytes.
        at: u64,
        /// Bytes that it takes at least.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8; the file is damaged")]
    NotUtf8 {
        /// What the string is.
        what: String,
        /// Position in the file, bytes.
        at: u64,
    },
    /// A metadata value has an unknown type.
    #[error("metadata key {key}: value type {found}, expected 0 to 12; the file is damaged")]
    ValueType {
        /// Key of the value.
        key: Quoted,
        /// Number of the type.
        found: u32,
    },
    /// A boolean is neither 0 nor 1.
    #[error("metadata key {key}: boolean byte {found}, expected 0 or 1; the file is damaged")]
    BoolByte {
        /// Key of the value.
        key: Quoted,
        /// The byte.
        found: u8,
    },
    /// Arrays are nested too deeply.
    #[error("metadata key {key}: arrays nested more than {limit} deep")]
    ArrayDepth {
        /// Key of the value.
        key: Quoted,
        /// The limit.
        limit: usize,
    },
    /// Two values have one key.
    #[error("metadata key {key} occurs twice, expected once")]
    DuplicateKey {
        /// The key.
        key: Quoted,
    },
    /// A metadata key is absent.
    #[error("metadata key {key} is missing, expected {expected}; is this the right kind of file?")]
    MissingKey {
        /// The key.
        key: Quoted,
        /// What it should hold.
        expected: &'static str,
    },
    /// A metadata value is of another type or out of range.
    #[error("metadata key {key}: found {found}, expected {expected}")]
    WrongValue {
        /// The key.
        key: Quoted,
        /// Type and value.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// Two tensors have one name.
    #[error("tensor {tensor} occurs twice, expected once")]
    DuplicateTensor {
        /// The name.
        tensor: Quoted,
    },
    /// A tensor has a type that this crate does not decode.
    #[error(
        "tensor {tensor}: type id {id} is not supported; supported are {}",
        supported()
    )]
    TensorType {
        /// Name of the tensor.
        tensor: Quoted,
        /// Number of the type.
        id: u32,
    },
    /// A tensor's shape is impossible.
    #[error("tensor {tensor}: {source}")]
    Shape {
        /// Name of the tensor.
        tensor: Quoted,
        /// What is wrong.
        source: ShapeError,
    },
    /// A tensor does not begin at a multiple of the alignment.
    #[error("tensor {tensor}: offset {offset}, expected a multiple of the alignment {alignment}")]
    TensorOffset {
        /// Name of the tensor.
        tensor: Quoted,
        /// Offset within the tensor data, bytes.
        offset: u64,
        /// The file's alignment, bytes.
        alignment: u64,
    },
    /// A tensor reaches past the end of the file.
    #[error(
        "tensor {tensor}: {n_bytes} bytes at offset {offset} of {available} bytes of tensor data; \
         the file is damaged or its download incomplete"
    )]
    TensorRange {
        /// Name of the tensor.
        tensor: Quoted,
        /// Offset within the tensor data, bytes.
        offset: u64,
        /// Length, bytes.
        n_bytes: u64,
        /// Length of the tensor data, bytes.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first} and {second} overlap; the file is damaged")]
    Overlap {
        /// The tensor that begins first.
        first: Quoted,
        /// The tensor that begins before the first has ended.
        second: Quoted,
    },
    /// The files of a split model do not fit together.
    #[error("split file: {0}")]
    Split(String),
}

fn supported() -> String {
    let names: Vec<String> = GgmlType::all()
        .iter()
        .map(|ty| format!("{ty} ({})", ty.id()))
        .collect();
    names.join(", ")
}

impl Error {
    pub(super) fn in_file(self, path: impl Into<PathBuf>) -> Error {
        Error::InFile {
            path: path.into(),
            source: Box::new(self),
        }
    }
}

/// Makes a missing key `None`; any other error stays: `optional(metadata.u32("key"))?`.
///
/// # Errors
/// The error given, unless it is [`Error::MissingKey`].
pub fn optional<T>(value: Result<T, Error>) -> Result<Option<T>, Error> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Error::MissingKey { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name from a file as an error shows it: quoted, on one line, cut to 100 characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(String);

/// Shows a name in the way of [`Quoted`], without keeping it.
pub(super) struct Quote<'a>(pub(super) &'a str);

impl fmt::Display for Quote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(100) {
            Some((end, _)) => write!(f, "{:?}...", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

impl From<&str> for Quoted {
    fn from(name: &str) -> Quoted {
        Quoted(Quote(name).to_string())
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
