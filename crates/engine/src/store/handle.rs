//! The store of one running engine: lookup, loading, saving.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::file::{FileKind, Head, MAX_TEXT_KEYS, PointFields, Reason};
use super::index::{Index, NotStored, weight};
use super::journal;
use super::key::{ChainHash, CompatKey, FileId, TextKey};
use super::layout::SlotLayout;
use super::load::{Loaded, Miss};
use super::options::{StoreError, StoreOptions};
use super::reader::{Awaited, Read, Reader};
use super::report::{
    Candidate, MatchedBy, Notice, PointSaved, SaveOptions, Saved, StoreCounts, StoreMeter,
    StoreUsage, TextQuery,
};
use super::save::{RowSource, SaveError, read_groups};
use super::scan::{COMPAT_PREFIX, CompatDir, FORMAT_FILE, FORMAT_TEXT, LOCK_FILE, scan};
use super::shared::{Pending, Shared, State};
use super::turns::{TurnLog, TurnLogError, TurnLogOptions};
use super::volume::{self, LocalVolume, Volume};
use super::writer;

/// States of one model on disk. The engine's thread owns it; threads of its own read and
/// write. Dropping it writes what is queued.
pub struct Store {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    reader: Reader,
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
        let compat = CompatDir::new(dir, &key.folder());
        compat.check().map_err(StoreError::io(&compat.path))?;
        let now = (options.now)();
        // One that can be read and not written, such as a backup, serves what it has.
        let is_read_only = read_format(dir)?.is_some() && !volume.takes_files(dir);
        let lock = match is_read_only {
            true => lock_read_only(dir, options.exclusive)?,
            false => {
                volume::create_dir(dir).map_err(StoreError::io(dir))?;
                let lock = lock_folder(dir, options.exclusive)?;
                write_format(dir, &*volume)?;
                compat.create().map_err(StoreError::io(&compat.path))?;
                let removed = compat.remove_temporaries(now);
                removed.map_err(StoreError::io(&compat.path))?;
                lock
            }
        };
        let points_seen = compat.points().metadata().and_then(|m| m.modified()).ok();
        let mut index = Index::new(ChainHash::root(key), layout.block_tokens());
        let report = scan(&compat, key, Some(layout.block_tokens()), &mut index)
            .map_err(StoreError::io(&compat.path))?;
        for path in report.incomplete.iter().filter(|_| !is_read_only) {
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
            is_read_only,
            told_too_large: false,
            n_failures: 0,
            allowance: (per_day, now),
            points_seen,
            uses_changed: false,
            dropped: Vec::new(),
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            compat,
            key,
            layout,
            options,
            volume,
            state: Mutex::new(state),
            folder: Mutex::new(()),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        if is_read_only {
            shared.state().notice(Notice::ReadOnly);
        }
        for (path, damage) in report.damaged {
            shared.quarantine(&path, damage.to_string());
        }
        let for_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("kv-store".to_owned())
            .spawn(move || writer::run(&for_writer))
            .map_err(StoreError::io(dir))?;
        let reader = Reader::start(&shared).map_err(StoreError::io(dir))?;
        Ok(Store {
            shared,
            reader,
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Whether nothing is written, because the folder takes no files.
    pub fn is_read_only(&self) -> bool {
        self.shared.state().is_read_only
    }

    /// Points that a prompt can start from, most tokens first, those matched by
    /// tokens before those matched by text. At least the prompt's last token is
    /// left to be computed: logits are not stored. Other processes' points are found too:
    /// this reads the folder.
    pub fn find(&self, tokens: &[u32], text: Option<TextQuery<'_>>) -> Vec<Candidate> {
        self.shared.refresh();
        self.find_known(tokens, text)
    }

    /// The same among the points that are known, without a look at the folder.
    pub fn find_known(&self, tokens: &[u32], text: Option<TextQuery<'_>>) -> Vec<Candidate> {
        let shared = &*self.shared;
        let now = shared.now();
        let state = shared.state();
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
        self.shared.load(candidate)
    }

    /// Begins to look for what other processes wrote, in another thread. Whoever waits for
    /// it finds with [`Store::find_known`] what [`Store::find`] would find.
    pub fn look(&self) -> Awaited<()> {
        self.reader.look()
    }

    /// Begins to read the first of these that can be read, in another thread.
    pub fn read(&self, candidates: Vec<Candidate>) -> Awaited<Option<Read>> {
        self.reader.read(candidates)
    }

    /// Points that were queued and are not written, each told once.
    pub(crate) fn take_dropped(&self) -> Vec<FileId> {
        std::mem::take(&mut self.shared.state().dropped)
    }

    /// Saves the state after exactly `tokens`, whose rows `source` has: reads the rows of
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
            id: None,
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
            if !std::mem::replace(&mut state.told_too_large, true) {
                state.notice(Notice::TooLarge {
                    n_tokens: tokens.len(),
                    n_bytes: n_needed,
                    budget_bytes: options.budget_bytes,
                });
            }
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
                saved.id = Some(id);
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
        saved.id = Some(id);
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
                state.drop_queued(entry.id, true);
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
        self.shared.state().usage()
    }

    /// What tells the same to other threads.
    pub fn meter(&self) -> StoreMeter {
        StoreMeter {
            shared: Arc::downgrade(&self.shared),
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
    check_owner(dir)?;
    let path = dir.join(LOCK_FILE);
    let lock = volume::open_private(&path).map_err(StoreError::io(&path))?;
    lock_file(dir, path, lock, exclusive)
}

/// The same of a folder that takes no files: one that was never locked locks itself.
fn lock_read_only(dir: &Path, exclusive: bool) -> Result<File, StoreError> {
    check_owner(dir)?;
    let path = dir.join(LOCK_FILE);
    volume::expect_file(&path).map_err(StoreError::io(&path))?;
    let lock = File::open(&path).or_else(|_| File::open(dir));
    let lock = lock.map_err(StoreError::io(&path))?;
    lock_file(dir, path, lock, exclusive)
}

fn check_owner(dir: &Path) -> Result<(), StoreError> {
    match volume::insecure(dir).map_err(StoreError::io(dir))? {
        Some(why) => Err(StoreError::Insecure {
            path: dir.to_owned(),
            why,
        }),
        None => Ok(()),
    }
}

fn lock_file(dir: &Path, path: PathBuf, lock: File, exclusive: bool) -> Result<File, StoreError> {
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
    volume::expect_file(&path).map_err(StoreError::io(&path))?;
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
