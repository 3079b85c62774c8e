//! GGUF files: metadata, a table of tensors, and their data.
//!
//! [`Gguf::open`] maps a file, or all files of a split model, and checks the whole header: every
//! count against the bytes that are there, every tensor's type, shape, alignment and range, and
//! that no two share a name or bytes. What it returns can be trusted. [`Writer`] writes such files.
//!
//! Little-endian files of version 2 and 3, which share one layout; `docs/gguf.md` has the byte
//! table.

mod error;
mod metadata;
mod read;
mod split;
mod write;

pub use error::{Error, Quoted, optional};
pub use metadata::{Array, Metadata, Value};
pub use read::{Gguf, MAX_ARRAY_DEPTH, Shard, Split, TensorSpec};
pub use write::{Writer, write_tensors};

/// Alignment of tensors in a file that does not set `general.alignment`, bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The largest alignment a file may ask for, bytes.
pub const MAX_ALIGNMENT: u64 = 1 << 24;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment that the metadata sets.
fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    match optional(metadata.u64(ALIGNMENT_KEY))? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(n) if n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&n) => Ok(n),
        Some(n) => Err(Error::WrongValue {
            key: ALIGNMENT_KEY.into(),
            found: n.to_string(),
            expected: "a power of two from 8 to 16777216",
        }),
    }
}
