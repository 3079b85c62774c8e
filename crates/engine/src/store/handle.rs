//! The store of one running engine: lookup, loading, saving.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::file::{Codec, FileKind, Head, MAX_TEXT_KEYS, PointFields, Reason};
use super::index::{Index, NotStored, weight};
use super::journal;
use super::key::{ChainHash, CompatKey, FileId, TextKey};
use super::layout::{Group, SlotLayout};
use super::load::{self, Loaded, Miss};
use super::save::{RowSource, SaveError, read_groups};
use super::scan::{
    COMPAT_PREFIX, CompatDir, FORMAT_FILE, FORMAT_TEXT, LOCK_FILE, quarantine, scan,
};
use super::turns::{TurnLog, TurnLogError, TurnLogOptions};
use super::volume::{self, LocalVolume, Volume};
use super::writer;

/// Default of [`StoreOptions::budget_bytes`].
pub const BUDGET_BYTES: u64 = 16 << 30;
/// Default of [`StoreOptions::min_tokens`].
pub const MIN_TOKENS: usize = 512;
/// Default of [`StoreOptions::write_budget_bytes_per_day`].
pub const WRITE_BUDGET_BYTES_PER_DAY: u64 = 50 << 30;
/// Default of [`StoreOptions::queue_bytes`].
pub const QUEUE_BYTES: usize = 256 << 20;
/// How long nothing is written after the volume took no more.
pub const PAUSE: Duration = Duration::from_secs(300);
/// Turn ends of one conversation that stay on disk.
pub const TURN_ENDS_KEPT: usize = 2;
/// Notices that wait to be taken; older ones give way.
const MAX_NOTICES: usize = 64;

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
    id: FileId,
    _pin: Arc<()>,
}

/// What to save, and how urgently.
#[derive(Clone, Debug)]
pub struct SaveOptions<'a> {
    /// Why; [`Reason::Block`] stores completed blocks only.
    pub reason: Reason,
    /// Texts that the tokens stand for, at most [`MAX_TEXT_KEYS`].
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
    /// The state is shorter than [`StoreOptions::min_tokens`].
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
    /// Writing stopped for [`PAUSE`].
    Paused {
        /// The error.
        why: String,
    },
    /// A damaged file was moved to the quarantine.
    Quarantined {
        /// Where it was.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
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

/// A file to be written.
pub(crate) struct Pending {
    pub(crate) id: FileId,
    pub(crate) head: Head,
    pub(crate) groups: Vec<(Group, Vec<u8>)>,
    pub(crate) n_bytes: usize,
    pub(crate) reason: Reason,
    pub(crate) value: f64,
}

impl Pending {
    pub(crate) fn is_point(&self) -> bool {
        matches!(self.head.kind, FileKind::Point(_))
    }
}

/// What both threads see. It is never held while a file is written or read.
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) queue: VecDeque<Pending>,
    pub(crate) queued_bytes: usize,
    /// Ids in the queue or being written.
    pub(crate) pending: HashSet<FileId>,
    pub(crate) is_closing: bool,
    pub(crate) n_other_bytes: u64,
    pub(crate) has_other_keys: bool,
    pub(crate) counts: StoreCounts,
    pub(crate) notices: VecDeque<Notice>,
    pub(crate) paused_until: Option<SystemTime>,
    pub(crate) n_failures: u32,
    /// Bytes that may be written now, and when that was computed.
    pub(crate) allowance: (f64, SystemTime),
    /// Modification time of the points folder when it was last read.
    pub(crate) points_seen: Option<SystemTime>,
    pub(crate) uses_changed: bool,
}

impl State {
    pub(crate) fn notice(&mut self, notice: Notice) {
        if self.notices.len() == MAX_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }

    pub(crate) fn is_paused(&self, now: SystemTime) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// Refills the day's allowance.
    pub(crate) fn refill(&mut self, per_day: u64, now: SystemTime) {
        let (left, at) = self.allowance;
        let elapsed = now.duration_since(at).unwrap_or_default().as_secs_f64();
        let refilled = left + per_day as f64 * elapsed / 86_400.0;
        self.allowance = (refilled.min(per_day as f64), now.max(at));
    }
}

pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) compat: CompatDir,
    pub(crate) key: CompatKey,
    pub(crate) layout: SlotLayout,
    pub(crate) options: StoreOptions,
    pub(crate) volume: Box<dyn Volume>,
    pub(crate) state: Mutex<State>,
    /// Wakes the writer.
    pub(crate) work: Condvar,
    /// Wakes those who wait for the writer.
    pub(crate) done: Condvar,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking thread left is an index that the files still back.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.options.now)()
    }

    pub(crate) fn points_modified(&self) -> Option<SystemTime> {
        self.compat
            .points()
            .metadata()
            .and_then(|m| m.modified())
            .ok()
    }

    /// Takes notice of what other processes wrote and removed.
    pub(crate) fn refresh(&self, state: &mut State) {
        if self.options.exclusive {
            return;
        }
        let modified = self.points_modified();
        if modified.is_none() || modified == state.points_seen {
            return;
        }
        let block_tokens = Some(self.layout.block_tokens());
        // Unreadable files are found when they are loaded; a folder that cannot
        // be listed leaves the index as it is.
        if scan(&self.compat, self.key, block_tokens, &mut state.index).is_ok() {
            state.points_seen = modified;
        }
    }

    /// Moves a damaged file away and forgets what needs it.
    fn quarantine(&self, path: &Path, why: String) {
        quarantine(&self.dir, path);
        let id = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(FileId::from_hex);
        let mut state = self.state();
        state.counts.n_quarantined += 1;
        let path = path.to_owned();
        state.notice(Notice::Quarantined { path, why });
        if let Some(id) = id {
            self.forget(&mut state, id);
        }
    }

    /// Forgets a file that is gone, and the points that need it. Their files go
    /// too: they could never be loaded.
    fn forget(&self, state: &mut State, id: FileId) {
        state.index.remove_point(id);
        state.index.remove_block(id);
        for point in state.index.points_of_block(id) {
            state.index.remove_point(point);
            // One that stays is dropped as incomplete at the next start.
            let _ = volume::remove(&self.compat.point(point));
        }
    }
}

/// States of one model on disk. The engine's thread owns it; a thread of its own
/// writes. Dropping it writes what is queued.
pub struct Store {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    /// Says to other processes that the folder is in use, as long as it is open.
    _lock: File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.shared.dir)
            .field("key", &self.shared.key)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a folder, creating it when it is not there, and reads what it
    /// holds for this key. Damaged files are moved away.
    pub fn open(
        dir: impl AsRef<Path>,
        options: StoreOptions,
        key: CompatKey,
        layout: SlotLayout,
    ) -> Result<Store, StoreError> {
        Store::open_on(
            dir.as_ref(),
            options,
            key,
            layout,
            Box::<LocalVolume>::default(),
        )
    }

    pub(crate) fn open_on(
        dir: &Path,
        options: StoreOptions,
        key: CompatKey,
        layout: SlotLayout,
        volume: Box<dyn Volume>,
    ) -> Result<Store, StoreError> {
        volume::create_dir(dir).map_err(StoreError::io(dir))?;
        let lock = lock_folder(dir, options.exclusive)?;
        write_format(dir, &*volume)?;
        let compat = CompatDir::new(dir, &key.folder());
        compat.create().map_err(StoreError::io(&compat.path))?;

        let now = (options.now)();
        compat
            .remove_temporaries(now)
            .map_err(StoreError::io(&compat.path))?;
        let points_seen = compat.points().metadata().and_then(|m| m.modified()).ok();
        let mut index = Index::new(ChainHash::root(key), layout.block_tokens());
        let report = scan(&compat, key, Some(layout.block_tokens()), &mut index)
            .map_err(StoreError::io(&compat.path))?;
        for path in &report.incomplete {
            volume::remove(path).map_err(StoreError::io(path))?;
        }
        journal::read(&compat.journal(), &mut index);
        let (n_other_bytes, has_other_keys) =
            writer::measure_others(dir, &compat).map_err(StoreError::io(dir))?;

        let per_day = options.write_budget_bytes_per_day as f64;
        let state = State {
            index,
            queue: VecDeque::new(),
            queued_bytes: 0,
            pending: HashSet::new(),
            is_closing: false,
            n_other_bytes,
            has_other_keys,
            counts: StoreCounts::default(),
            notices: VecDeque::new(),
            paused_until: None,
            n_failures: 0,
            allowance: (per_day, now),
            points_seen,
            uses_changed: false,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            compat,
            key,
            layout,
            options,
            volume,
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        for (path, damage) in report.damaged {
            shared.quarantine(&path, damage.to_string());
        }
        let for_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("kv-store".to_owned())
            .spawn(move || writer::run(&for_writer))
            .map_err(StoreError::io(dir))?;
        Ok(Store {
            shared,
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Points that a prompt can start from, most tokens first, those matched by
    /// tokens before those matched by text. At least the prompt's last token is
    /// left to be computed: logits are not stored.
    pub fn find(&self, tokens: &[u32], text: Option<TextQuery<'_>>) -> Vec<Candidate> {
        let shared = &*self.shared;
        let now = shared.now();
        let mut state = shared.state();
        shared.refresh(&mut state);
        let index = &state.index;
        let mut found: Vec<(FileId, MatchedBy)> = index
            .along(tokens)
            .into_iter()
            .filter(|id| index.points()[id].n_tokens < tokens.len())
            .map(|id| (id, MatchedBy::Tokens))
            .collect();
        if let Some(query) = text {
            for (id, length) in index.along_text(query.text, query.setting) {
                if found.iter().all(|(other, _)| *other != id) {
                    let text_bytes = length as usize;
                    found.push((id, MatchedBy::Text { text_bytes }));
                }
            }
        }
        let mut candidates: Vec<Candidate> = found
            .into_iter()
            .map(|(id, matched_by)| (id, matched_by, &index.points()[&id]))
            .filter(|(_, _, point)| {
                point.n_tokens < shared.options.max_tokens
                    && point.not_before.is_none_or(|time| now >= time)
            })
            .map(|(id, matched_by, point)| Candidate {
                n_tokens: point.n_tokens,
                matched_by,
                n_bytes: point.n_bytes
                    + point
                        .blocks()
                        .filter_map(|block| index.blocks().get(&block))
                        .map(|block| block.n_bytes)
                        .sum::<u64>(),
                reason: point.reason,
                id,
                _pin: Arc::clone(&point.pin),
            })
            .collect();
        candidates.sort_by_key(|c| {
            let by_text = c.matched_by != MatchedBy::Tokens;
            (std::cmp::Reverse(c.n_tokens), by_text)
        });
        candidates
    }

    /// The log of the turns that were sampled with this store's model. It lies
    /// in the folder of the model's key, because its token ids mean nothing to
    /// another vocabulary. A file that is not a log is moved to the quarantine.
    pub fn open_turn_log(&self, options: TurnLogOptions) -> Result<TurnLog, TurnLogError> {
        let path = self.shared.compat.turn_log();
        match TurnLog::open(&path, options) {
            Err(error @ TurnLogError::NotALog { .. }) => {
                self.shared.quarantine(&path, error.to_string());
                TurnLog::open(&path, options)
            }
            opened => opened,
        }
    }

    /// Why nothing beyond the first `n_used` tokens of a prompt could be
    /// reused, for the log.
    pub fn not_stored(&self, tokens: &[u32], n_used: usize) -> NotStored {
        let state = self.shared.state();
        if state.index.points().is_empty() && state.has_other_keys {
            return NotStored::OtherModel;
        }
        state.index.not_stored(tokens, n_used)
    }

    /// Reads a point. Every byte is checked; a damaged file is moved away, and
    /// the next candidate may be tried.
    pub fn load(&self, candidate: &Candidate) -> Result<Loaded, Miss> {
        let shared = &*self.shared;
        let options = &shared.options;
        let loaded = load::load(
            &shared.compat,
            shared.key,
            &shared.layout,
            candidate.id,
            options.max_tokens,
            options.n_load_threads,
        );
        match &loaded {
            Ok(loaded) => {
                let mut state = shared.state();
                state.counts.n_loaded += 1;
                state.counts.read_bytes += loaded.n_bytes;
                state.index.note_use(candidate.id, shared.now());
                state.uses_changed = true;
            }
            Err(Miss::Damaged { path, damage }) => shared.quarantine(path, damage.to_string()),
            Err(Miss::Gone { path }) => {
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                if let Some(id) = stem.and_then(FileId::from_hex) {
                    shared.forget(&mut shared.state(), id);
                }
            }
            Err(Miss::Io { .. }) => {
                let until = shared.now() + PAUSE;
                if let Some(point) = shared.state().index.point_mut(candidate.id) {
                    point.not_before = Some(until);
                }
            }
            Err(Miss::TooLong { .. }) => {}
        }
        loaded
    }

    /// Saves the state of a slot that holds exactly `tokens`: reads the rows of
    /// the blocks that are not stored yet, and tail and frontier for the point,
    /// and hands them to the writer. Nothing here waits for the disk unless
    /// asked to. When the queue has no room for all blocks, those that fit are
    /// taken, and a later save goes on from there.
    pub fn save(
        &self,
        tokens: &[u32],
        source: &mut dyn RowSource,
        save: &SaveOptions<'_>,
    ) -> Result<Saved, SaveError> {
        let shared = &*self.shared;
        let (layout, options) = (&shared.layout, &shared.options);
        let block_tokens = layout.block_tokens();
        let mut chain = Vec::with_capacity(tokens.len() / block_tokens);
        let mut last = ChainHash::root(shared.key);
        let blocks = tokens.chunks_exact(block_tokens);
        let tail = blocks.remainder();
        for block in blocks.clone() {
            last = last.then(block);
            chain.push(last);
        }
        let mut saved = Saved {
            n_new_blocks: 0,
            n_shared_blocks: 0,
            n_queued_bytes: 0,
            point: PointSaved::NotAsked,
        };
        let wants_point = save.reason != Reason::Block;
        if wants_point && tokens.len() < options.min_tokens {
            saved.point = PointSaved::TooShort;
            return Ok(saved);
        }

        let mut state = shared.state();
        let now = shared.now();
        state.refill(options.write_budget_bytes_per_day, now);
        let is_privileged = matches!(
            save.reason,
            Reason::Anchor | Reason::Shutdown | Reason::Explicit
        );
        let refused = if state.is_paused(now) {
            Some(PointSaved::Paused)
        } else if state.allowance.0 <= 0.0 && !is_privileged {
            Some(PointSaved::OverWriteBudget)
        } else {
            None
        };
        if let Some(point) = refused {
            saved.point = point;
            return Ok(saved);
        }
        let is_stored = |state: &State, hash: &ChainHash| {
            let id = hash.block_id();
            state.index.blocks().contains_key(&id) || state.pending.contains(&id)
        };
        let missing: Vec<usize> = (0..chain.len())
            .filter(|i| !is_stored(&state, &chain[*i]))
            .collect();
        saved.n_shared_blocks = chain.len() - missing.len();
        state.counts.n_shared_blocks += saved.n_shared_blocks as u64;
        let point_bytes = layout.point_bytes(tokens.len());
        let n_needed = (missing.len() * layout.block_bytes() + point_bytes) as u64;
        if wants_point && n_needed > options.budget_bytes {
            saved.point = PointSaved::TooLarge;
            return Ok(saved);
        }
        drop(state);

        let value = weight(save.reason, true) * tokens.len() as f64;
        let pending = |id, kind, parent, range: std::ops::Range<usize>, groups| {
            let groups = read_groups(&mut *source, groups)?;
            let n_bytes = groups.iter().map(|(_, rows)| rows.len()).sum();
            let tokens = tokens[range.clone()].to_vec();
            Ok::<_, SaveError>(Pending {
                id,
                head: Head::new(kind, shared.key, parent, range.start, tokens),
                groups,
                n_bytes,
                reason: save.reason,
                value,
            })
        };
        let mut pending = pending;
        for i in missing {
            if !self.make_room(layout.block_bytes(), value, save.wait) {
                saved.point = match wants_point {
                    true => PointSaved::QueueFull,
                    false => PointSaved::NotAsked,
                };
                return Ok(saved);
            }
            let parent = match i {
                0 => ChainHash::root(shared.key),
                _ => chain[i - 1],
            };
            let range = layout.block_range(i);
            let groups = layout.completed(range.clone());
            let id = chain[i].block_id();
            let entry = pending(id, FileKind::Block, parent, range, groups)?;
            saved.n_new_blocks += 1;
            saved.n_queued_bytes += entry.n_bytes;
            self.push(entry);
        }
        if !wants_point {
            return Ok(saved);
        }

        let id = last.point_id(tail);
        let mut text_keys: Vec<TextKey> = Vec::new();
        {
            let state = shared.state();
            let known = state.index.points().get(&id);
            let known_keys = known.map_or(&[][..], |point| &point.text_keys);
            for key in known_keys.iter().chain(save.text_keys) {
                if !text_keys.contains(key) && text_keys.len() < MAX_TEXT_KEYS {
                    text_keys.push(*key);
                }
            }
            let adds_keys = text_keys.len() > known_keys.len();
            if state.pending.contains(&id) || known.is_some() && !adds_keys {
                saved.point = PointSaved::Known;
                return Ok(saved);
            }
        }
        if !self.make_room(point_bytes, value, save.wait) {
            saved.point = PointSaved::QueueFull;
            return Ok(saved);
        }
        let start = chain.len() * block_tokens;
        let mut groups = layout.frontier(tokens.len());
        groups.extend(layout.completed(start..tokens.len()));
        let fields = PointFields {
            created: now,
            reason: save.reason,
            text_keys,
            chain,
        };
        let kind = FileKind::Point(fields);
        let entry = pending(id, kind, last, start..tokens.len(), groups)?;
        saved.n_queued_bytes += entry.n_bytes;
        self.push(entry);
        saved.point = PointSaved::Queued;
        Ok(saved)
    }

    /// Makes room in the queue by dropping points of less value, or by waiting.
    /// An empty queue takes a file of any size.
    fn make_room(&self, n_bytes: usize, value: f64, wait: bool) -> bool {
        let shared = &*self.shared;
        let mut state = shared.state();
        loop {
            let fits = state.queued_bytes + n_bytes <= shared.options.queue_bytes;
            if fits || state.queued_bytes == 0 {
                return true;
            }
            let worst = state
                .queue
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.is_point() && entry.value < value)
                .min_by(|a, b| a.1.value.total_cmp(&b.1.value))
                .map(|(at, _)| at);
            if let Some(entry) = worst.and_then(|at| state.queue.remove(at)) {
                state.queued_bytes -= entry.n_bytes;
                state.pending.remove(&entry.id);
                state.counts.n_dropped += 1;
            } else if !wait {
                return false;
            } else {
                state = shared.done.wait(state).unwrap_or_else(|e| e.into_inner());
            }
        }
    }

    fn push(&self, entry: Pending) {
        let mut state = self.shared.state();
        state.queued_bytes += entry.n_bytes;
        state.pending.insert(entry.id);
        state.queue.push_back(entry);
        self.shared.work.notify_one();
    }

    /// Waits until everything queued is written or given up.
    pub fn flush(&self) {
        let shared = &*self.shared;
        let mut state = shared.state();
        while !state.pending.is_empty() {
            state = shared.done.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// What happened that the log should say, oldest first; each is told once.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.shared.state().notices.drain(..).collect()
    }

    /// Numbers since it was opened.
    pub fn counts(&self) -> StoreCounts {
        self.shared.state().counts
    }

    /// How full it is.
    pub fn usage(&self) -> StoreUsage {
        let state = self.shared.state();
        StoreUsage {
            n_points: state.index.points().len(),
            n_blocks: state.index.blocks().len(),
            n_bytes: state.index.n_bytes(),
            n_other_bytes: state.n_other_bytes,
            n_queued_bytes: state.queued_bytes,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.state().is_closing = true;
        self.shared.work.notify_all();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing more to write.
            let _ = writer.join();
        }
    }
}

/// Checks that a folder is private and tells other processes that it is used.
pub(crate) fn lock_folder(dir: &Path, exclusive: bool) -> Result<File, StoreError> {
    if let Some(why) = volume::insecure(dir).map_err(StoreError::io(dir))? {
        let path = dir.to_owned();
        return Err(StoreError::Insecure { path, why });
    }
    let path = dir.join(LOCK_FILE);
    let lock = volume::open_private(&path).map_err(StoreError::io(&path))?;
    let locked = match exclusive {
        true => lock.try_lock(),
        false => lock.try_lock_shared(),
    };
    match locked {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            path: dir.to_owned(),
            exclusive,
        }),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { path, source }),
    }
}

/// Whether a folder is a store; `None` when nothing says what it is.
pub(crate) fn read_format(dir: &Path) -> Result<Option<()>, StoreError> {
    let path = dir.join(FORMAT_FILE);
    match volume::read_limited(&path, FORMAT_TEXT.len() as u64) {
        Ok(Some(bytes)) if bytes == FORMAT_TEXT.as_bytes() => Ok(Some(())),
        Ok(found) => {
            let found = found.unwrap_or_else(|| b"a longer file".to_vec());
            let found = String::from_utf8_lossy(&found).into_owned();
            Err(StoreError::NotAStore { path, found })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

fn write_format(dir: &Path, volume: &dyn Volume) -> Result<(), StoreError> {
    if read_format(dir)?.is_none() {
        let path = dir.join(FORMAT_FILE);
        volume
            .write(&path, FORMAT_TEXT.as_bytes())
            .map_err(StoreError::io(&path))?;
    }
    Ok(())
}

/// Names of the folders of other keys.
pub(crate) fn is_compat_folder(name: &str) -> bool {
    name.strip_prefix(COMPAT_PREFIX)
        .is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}
