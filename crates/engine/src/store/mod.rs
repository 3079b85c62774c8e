//! States on disk: what was computed once is read back, after a restart too.
//!
//! The rows that a conversation only ever appends to lie in **blocks** of 2,048
//! tokens, named by a hash of every token up to their end: conversations that
//! begin alike share files, and a growing one writes each block once. A
//! **point** is a place to go on from: it names its blocks and holds a tail (the
//! rows after the last block) and the frontier (what the next tokens look back
//! to besides compressed rows). `docs/kv-store.md` has the byte tables.
//!
//! [`Store::find`] says which points a prompt can start from, [`Store::load`]
//! reads one, [`Store::save`] reads the rows that are not stored yet and hands
//! them to a thread that writes. The engine never waits for the disk, and no
//! failure of the store is a failure of a request: a damaged file is a miss.
//!
//! [`TurnLog`] keeps what was sampled in a turn, by its keys. [`list`],
//! [`verify`], [`gc`] and [`clear`] work on a folder without an engine.

#[cfg(all(test, unix))]
mod faults;
mod file;
mod handle;
mod index;
mod journal;
mod key;
mod layout;
mod load;
mod maintain;
mod options;
mod reader;
mod report;
mod rows;
mod save;
mod scan;
mod shared;
mod turns;
mod volume;
mod writer;

pub use file::{CHUNK_BYTES, Codec, Damage, MAX_HEAD_BYTES, MAX_TEXT_KEYS, Reason};
pub use handle::Store;
pub use index::{NotStored, YOUNG_BLOCK, YOUNG_POINT};
pub use journal::read_journal_bytes;
pub use key::{
    ChainHash, CompatInputs, CompatKey, FORMAT_VERSION, FileId, TextKey, WeightsFingerprint,
};
pub use layout::{BLOCK_TOKENS, SlotLayout};
pub use load::{Loaded, Miss, decode_file};
pub use maintain::{Collected, ListedModel, ListedPoint, Verified, clear, gc, list, verify};
pub use options::{
    BUDGET_BYTES, KEEP_FREE_BYTES, MIN_TOKENS, PAUSE, QUEUE_BYTES, StoreError, StoreOptions,
    TURN_ENDS_KEPT, WRITE_BUDGET_BYTES_PER_DAY,
};
pub use reader::{Answer, Awaited, Read};
pub use report::{
    Candidate, MatchedBy, Notice, PointSaved, SaveOptions, Saved, StoreCounts, StoreMeter,
    StoreUsage, TextQuery,
};
pub use rows::{Encoding, RowFormat, RowGrid};
pub(crate) use save::rows_of;
pub use save::{RowSource, SaveError, SlotRows};
pub use turns::{
    MAX_KEY_BYTES, MAX_LOG_BYTES, MAX_LOG_KEYS, MAX_PAYLOAD_BYTES, MAX_RECORD_KEYS, TurnLog,
    TurnLogError, TurnLogOptions, TurnRecord, read_log_bytes,
};
