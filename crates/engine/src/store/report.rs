//! What a store is asked, and what it answers.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use super::file::Reason;
use super::key::{FileId, TextKey};
use super::shared::Shared;

/// A text whose beginnings are looked for.
#[derive(Clone, Copy, Debug)]
pub struct TextQuery<'a> {
    /// The rendered prompt.
    pub text: &'a str,
    /// As in [`TextKey::setting`].
    pub setting: u64,
}

/// How a point matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedBy {
    /// The prompt begins with its tokens.
    Tokens,
    /// The prompt's text begins with its text; what follows is to be tokenised
    /// anew.
    Text {
        /// Length of that beginning, bytes.
        text_bytes: usize,
    },
}

/// A point that a prompt can start from. While it lives, the point is not
/// evicted by this process.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Tokens of the point.
    pub n_tokens: usize,
    /// How it matched.
    pub matched_by: MatchedBy,
    /// Bytes to read for it.
    pub n_bytes: u64,
    /// Why it was saved.
    pub reason: Reason,
    pub(crate) id: FileId,
    pub(crate) _pin: Arc<()>,
}

/// What to save, and how urgently.
#[derive(Clone, Debug)]
pub struct SaveOptions<'a> {
    /// Why; [`Reason::Block`] stores completed blocks only.
    pub reason: Reason,
    /// Texts that the tokens stand for, at most [`MAX_TEXT_KEYS`](super::MAX_TEXT_KEYS).
    pub text_keys: &'a [TextKey],
    /// Wait for room in the queue instead of giving up.
    pub wait: bool,
}

/// What became of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Blocks that are on their way to the disk.
    pub n_new_blocks: usize,
    /// Blocks that were there already.
    pub n_shared_blocks: usize,
    /// Bytes of rows queued.
    pub n_queued_bytes: usize,
    /// What became of the point.
    pub point: PointSaved,
    /// Its name, as far as it was queued or known.
    pub(crate) id: Option<FileId>,
}

/// What became of the point of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointSaved {
    /// It is on its way.
    Queued,
    /// It was there already, or on its way.
    Known,
    /// Only blocks were asked for.
    NotAsked,
    /// The state is shorter than [`StoreOptions::min_tokens`](super::StoreOptions::min_tokens).
    TooShort,
    /// It would take more than the whole budget.
    TooLarge,
    /// The queue is full of what is worth more.
    QueueFull,
    /// The day's bytes are written.
    OverWriteBudget,
    /// The volume takes no more at the moment.
    Paused,
}

/// Something the log should say once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Writing stopped for [`PAUSE`](super::PAUSE).
    Paused {
        /// The error.
        why: String,
    },
    /// The folder takes no files: what it has is read, and nothing is written.
    ReadOnly,
    /// A state takes more than the whole budget; told of the first one.
    TooLarge {
        /// Its tokens.
        n_tokens: usize,
        /// Bytes that storing it takes.
        n_bytes: u64,
        /// Bytes that there are.
        budget_bytes: u64,
    },
    /// A file was not written because of a bug.
    Failed,
    /// A damaged file was moved to the quarantine.
    Quarantined {
        /// Where it was.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Paused { why } => {
                let seconds = super::PAUSE.as_secs();
                write!(f, "nothing is stored for {seconds} s: {why}")
            }
            Notice::ReadOnly => f.write_str("the store's folder takes no files: it is only read"),
            Notice::TooLarge {
                n_tokens,
                n_bytes,
                budget_bytes,
            } => write!(
                f,
                "a state of {n_tokens} tokens takes {} MiB, more than the {} MiB of the store's limit: \
                 states of this length are not stored",
                n_bytes.div_ceil(1 << 20),
                budget_bytes >> 20
            ),
            Notice::Failed => f.write_str("a state was not stored, because of a bug"),
            Notice::Quarantined { path, why } => {
                write!(
                    f,
                    "{}: {why}; the file was moved to the quarantine",
                    path.display()
                )
            }
        }
    }
}

/// Numbers since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Points written.
    pub n_points: u64,
    /// Blocks written.
    pub n_blocks: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Blocks that a save found already stored.
    pub n_shared_blocks: u64,
    /// Points evicted.
    pub n_evicted: u64,
    /// Points loaded.
    pub n_loaded: u64,
    /// Bytes read by loading.
    pub read_bytes: u64,
    /// Files found damaged.
    pub n_quarantined: u64,
    /// Queued files that were given up.
    pub n_dropped: u64,
}

/// How full the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreUsage {
    /// Points of this model.
    pub n_points: usize,
    /// Blocks of this model.
    pub n_blocks: usize,
    /// Bytes of this model.
    pub n_bytes: u64,
    /// Bytes of everything else in the folder.
    pub n_other_bytes: u64,
    /// Bytes of rows that wait to be written.
    pub n_queued_bytes: usize,
}

/// Says from any thread how a store fares, for as long as it is open.
#[derive(Clone)]
pub struct StoreMeter {
    pub(crate) shared: Weak<Shared>,
}

impl StoreMeter {
    /// Numbers since the store was opened, and how full it is; `None` once it is closed.
    pub fn read(&self) -> Option<(StoreCounts, StoreUsage)> {
        let shared = self.shared.upgrade()?;
        let state = shared.state();
        Some((state.counts, state.usage()))
    }
}
