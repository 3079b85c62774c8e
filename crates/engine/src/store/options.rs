//! How a store is kept, and why one cannot be opened.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file::Codec;
use super::scan::FORMAT_TEXT;

/// How long nothing is written after the volume took no more.
pub const PAUSE: Duration = Duration::from_secs(300);
/// Turn ends of one conversation that stay on disk.
pub const TURN_ENDS_KEPT: usize = 2;
/// Default of [`StoreOptions::budget_bytes`].
pub const BUDGET_BYTES: u64 = 16 << 30;
/// Default of [`StoreOptions::min_tokens`].
pub const MIN_TOKENS: usize = 512;
/// Default of [`StoreOptions::write_budget_bytes_per_day`].
pub const WRITE_BUDGET_BYTES_PER_DAY: u64 = 50 << 30;
/// Default of [`StoreOptions::queue_bytes`].
pub const QUEUE_BYTES: usize = 256 << 20;
/// Default of [`StoreOptions::keep_free_bytes`].
pub const KEEP_FREE_BYTES: u64 = 10 << 30;
/// How to keep states.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes of all files together.
    pub budget_bytes: u64,
    /// Shorter states are not saved: prefilling them is as fast.
    pub min_tokens: usize,
    /// Longest state that is offered: the capacity of a slot.
    pub max_tokens: usize,
    /// General compression.
    pub codec: Codec,
    /// Bytes written in a day, after which only anchors, shutdown points and
    /// explicit saves are written.
    pub write_budget_bytes_per_day: u64,
    /// Bytes of the volume that stay free, or a twentieth of the volume where that is less. With
    /// less free than that nothing is written.
    pub keep_free_bytes: u64,
    /// Take the folder for this process alone.
    pub exclusive: bool,
    /// Bytes of rows that wait to be written.
    pub queue_bytes: usize,
    /// Threads that read the blocks of a point.
    pub n_load_threads: usize,
    /// The clock, for ages and budgets.
    pub now: fn() -> SystemTime,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            budget_bytes: BUDGET_BYTES,
            min_tokens: MIN_TOKENS,
            max_tokens: usize::MAX,
            codec: Codec::default(),
            write_budget_bytes_per_day: WRITE_BUDGET_BYTES_PER_DAY,
            keep_free_bytes: KEEP_FREE_BYTES,
            exclusive: false,
            queue_bytes: QUEUE_BYTES,
            n_load_threads: 4,
            now: SystemTime::now,
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read or change the conversations in it.
    #[error("{} is not a private folder: {why}", path.display())]
    Insecure {
        /// The folder.
        path: PathBuf,
        /// Owner or mode, and what to do.
        why: String,
    },
    /// Another process uses it.
    #[error(
        "{} is in use by another process{}",
        path.display(),
        if *exclusive { "; stop it, or do not ask for exclusive use" } else { " that asked for exclusive use" }
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Whether this process asked for exclusive use.
        exclusive: bool,
    },
    /// It belongs to something else.
    #[error(
        "{}: found {found:?}, expected {FORMAT_TEXT:?}; choose another folder for the KV store",
        path.display()
    )]
    NotAStore {
        /// The file that says so.
        path: PathBuf,
        /// What it contains.
        found: String,
    },
}

impl StoreError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        |source| StoreError::Io {
            path: path.to_owned(),
            source,
        }
    }
}
