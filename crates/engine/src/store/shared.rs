//! What the threads of a store share.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::SystemTime;

use super::file::{FileKind, Head, Reason};
use super::index::Index;
use super::key::{CompatKey, FileId};
use super::layout::{Group, SlotLayout};
use super::options::StoreOptions;
use super::report::{Notice, StoreCounts, StoreUsage};
use super::scan::{CompatDir, Known, look, quarantine};
use super::volume::{self, Volume};

/// Notices that wait to be taken; older ones give way.
const MAX_NOTICES: usize = 64;
/// Given-up points that wait to be asked for; more are not told of.
const MAX_DROPPED: usize = 4096;

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
    /// Whether nothing is ever written.
    pub(crate) is_read_only: bool,
    /// Whether the log was told of a state larger than all room there is.
    pub(crate) told_too_large: bool,
    pub(crate) n_failures: u32,
    /// Bytes that may be written now, and when that was computed.
    pub(crate) allowance: (f64, SystemTime),
    /// Modification time of the points folder when it was last read.
    pub(crate) points_seen: Option<SystemTime>,
    pub(crate) uses_changed: bool,
    /// Points that were queued and are not written, until somebody asks.
    pub(crate) dropped: Vec<FileId>,
}

impl State {
    pub(crate) fn notice(&mut self, notice: Notice) {
        if self.notices.len() == MAX_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }

    pub(crate) fn usage(&self) -> StoreUsage {
        StoreUsage {
            n_points: self.index.points().len(),
            n_blocks: self.index.blocks().len(),
            n_bytes: self.index.n_bytes(),
            n_other_bytes: self.n_other_bytes,
            n_queued_bytes: self.queued_bytes,
        }
    }

    /// Notes that a queued file is given up.
    pub(crate) fn drop_queued(&mut self, id: FileId, is_point: bool) {
        self.counts.n_dropped += 1;
        if is_point && self.dropped.len() < MAX_DROPPED {
            self.dropped.push(id);
        }
    }

    pub(crate) fn is_paused(&self, now: SystemTime) -> bool {
        self.is_read_only || self.paused_until.is_some_and(|until| now < until)
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
    /// Held by whoever reads the folder or deletes from it, so that no deleted file is
    /// taken for a new one. The engine's thread never takes it.
    pub(crate) folder: Mutex<()>,
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

    /// Takes notice of what other processes wrote and removed. It reads the folder, and
    /// what is known stays open to others meanwhile.
    pub(crate) fn refresh(&self) {
        if self.options.exclusive {
            return;
        }
        let _folder = self.folder();
        let modified = self.points_modified();
        let known = {
            let state = self.state();
            if modified.is_none() || modified == state.points_seen {
                return;
            }
            Known::of(&state.index)
        };
        let block_tokens = Some(self.layout.block_tokens());
        // Unreadable files are found when they are loaded; a folder that cannot
        // be listed leaves the index as it is.
        if let Ok(found) = look(&self.compat, self.key, block_tokens, known) {
            let mut state = self.state();
            found.apply(&mut state.index);
            state.points_seen = modified;
        }
    }

    /// See [`Shared::folder`], the field.
    pub(crate) fn folder(&self) -> MutexGuard<'_, ()> {
        self.folder.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Moves a damaged file away and forgets what needs it.
    pub(crate) fn quarantine(&self, path: &Path, why: String) {
        quarantine(&self.dir, path);
        let id = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(FileId::from_hex);
        let mut state = self.state();
        state.counts.n_quarantined += 1;
        let path = path.to_owned();
        state.notice(Notice::Quarantined { path, why });
        drop(state);
        if let Some(id) = id {
            self.forget(id);
        }
    }

    /// Forgets a file that is gone, and the points that need it. Their files go
    /// too: they could never be loaded.
    pub(crate) fn forget(&self, id: FileId) {
        let mut state = self.state();
        state.index.remove_point(id);
        state.index.remove_block(id);
        let useless = state.index.points_of_block(id);
        for point in &useless {
            state.index.remove_point(*point);
        }
        drop(state);
        for point in useless {
            // One that stays is dropped as incomplete at the next start.
            let _ = volume::remove(&self.compat.point(point));
        }
    }
}
