//! The writer's thread: encoding, writing, evicting.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::file::Reason;
use super::handle::is_compat_folder;
use super::index::{BlockEntry, Index, Victim};
use super::journal;
use super::options::{PAUSE, TURN_ENDS_KEPT};
use super::report::Notice;
use super::scan::{CompatDir, QUARANTINE_DIR, point_entry, scan_unknown};
use super::shared::{Pending, Shared, State};
use super::volume;

/// Part of the budget that eviction leaves, in twentieths.
const KEEP_TWENTIETHS: u64 = 19;
/// Failures in a row after which writing pauses.
const MAX_FAILURES: u32 = 3;
/// How often changed use counts are written.
const JOURNAL_INTERVAL: Duration = Duration::from_secs(600);

/// Why a file was not written.
enum Failed {
    /// It cannot be of use any more.
    Useless,
    /// The volume would be fuller than it should.
    Reserve,
    Io(io::Error),
}

pub(crate) fn run(shared: &Shared) {
    // A bug in what follows costs what it was about, never the thread: others wait for it.
    let _ = catch_unwind(AssertUnwindSafe(|| evict(shared)));
    let mut journal_at = shared.now() + JOURNAL_INTERVAL;
    loop {
        let mut state = shared.state();
        if let Some(entry) = state.queue.pop_front() {
            drop(state);
            let (id, n_bytes, is_point) = (entry.id, entry.n_bytes, entry.is_point());
            let written = catch_unwind(AssertUnwindSafe(|| handle(shared, entry)));
            let mut state = shared.state();
            if written.is_err() {
                state.notice(Notice::Failed);
            }
            if !written.unwrap_or(false) {
                state.drop_queued(id, is_point);
            }
            state.queued_bytes -= n_bytes;
            state.pending.remove(&id);
            shared.done.notify_all();
            continue;
        }
        let is_closing = state.is_closing;
        let now = shared.now();
        if state.uses_changed && (is_closing || now >= journal_at) {
            state.uses_changed = false;
            let bytes = journal::bytes(&state.index);
            drop(state);
            // Use counts only order eviction; without them it is less wise.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                shared.volume.write(&shared.compat.journal(), &bytes)
            }));
            journal_at = now + JOURNAL_INTERVAL;
            continue;
        }
        if is_closing {
            return;
        }
        let waited = shared.work.wait_timeout(state, JOURNAL_INTERVAL);
        drop(waited);
    }
}

/// Writes a file; whether it is written.
fn handle(shared: &Shared, entry: Pending) -> bool {
    let now = shared.now();
    if shared.state().is_paused(now) {
        return false;
    }
    let Err(failed) = write(shared, entry) else {
        shared.state().n_failures = 0;
        if over_budget(shared, &shared.state()) {
            evict(shared);
        }
        return true;
    };
    let mut state = shared.state();
    let (is_full, why) = match failed {
        Failed::Useless => return false,
        Failed::Reserve => (true, "the volume is nearly full".to_owned()),
        Failed::Io(error) => (volume::is_out_of_space(&error), error.to_string()),
    };
    state.n_failures += 1;
    if is_full || state.n_failures >= MAX_FAILURES {
        state.n_failures = 0;
        state.paused_until = Some(now + PAUSE);
        state.notice(Notice::Paused { why });
        drop(state);
        if is_full {
            let used = total(&shared.state());
            evict_to(shared, used / 20 * KEEP_TWENTIETHS);
        }
    }
    false
}

/// Writes one file and enters it into the index.
fn write(shared: &Shared, entry: Pending) -> Result<(), Failed> {
    let is_point = entry.is_point();
    let Pending {
        id,
        head,
        groups,
        reason,
        ..
    } = entry;
    // While the lock is shared nobody deletes blocks, so that those of a point
    // are there when it appears.
    let lock = Locked(volume::open_private(&shared.compat.gc_lock()).map_err(Failed::Io)?);
    let path = if is_point {
        lock.0.lock_shared().map_err(Failed::Io)?;
        let entry = point_entry(head.clone(), 0);
        let is_there = |block| shared.compat.block(block).is_file();
        if !entry.blocks().all(is_there) {
            return Err(Failed::Useless);
        }
        shared.compat.point(id)
    } else {
        shared.compat.block(id)
    };
    let tokens = head.tokens.clone();
    let for_index = is_point.then(|| head.clone());
    let bytes = head.write(&groups, shared.options.codec);
    drop(groups);
    if let Some((free, all)) = shared.volume.space(&shared.dir) {
        let reserve = (all / 20).min(shared.options.keep_free_bytes);
        if free < reserve + bytes.len() as u64 {
            return Err(Failed::Reserve);
        }
    }
    let points_before = shared.points_modified();
    shared.volume.write(&path, &bytes).map_err(Failed::Io)?;
    let points_after = shared.points_modified();
    drop(lock);

    let n_bytes = bytes.len() as u64;
    let mut state = shared.state();
    state.counts.written_bytes += n_bytes;
    state.allowance.0 -= n_bytes as f64;
    if state.points_seen == points_before {
        state.points_seen = points_after;
    }
    let Some(head) = for_index else {
        state.counts.n_blocks += 1;
        let entry = BlockEntry {
            tokens: tokens.into(),
            n_bytes,
            modified: shared.now(),
        };
        state.index.add_block(id, entry);
        return Ok(());
    };
    state.counts.n_points += 1;
    let mut entry = point_entry(head, n_bytes);
    if let Some(old) = state.index.points().get(&id) {
        entry.uses = old.uses;
        entry.pin = old.pin.clone();
    }
    state.index.add_point(id, entry);
    let superseded = match reason {
        Reason::TurnEnd => state.index.superseded_turns(id, TURN_ENDS_KEPT),
        _ => Vec::new(),
    };
    drop(state);
    if !superseded.is_empty()
        && let Ok(Some(_lock)) = gc_lock(&shared.compat)
    {
        let _folder = shared.folder();
        for point in superseded {
            let mut state = shared.state();
            let (victim, _) = state.index.victim(point);
            state.index.take(&victim);
            drop(state);
            delete_files(&shared.compat, &victim);
        }
    }
    Ok(())
}

/// A locked file, unlocked when it is dropped. Closing it would not do: a
/// process that is being started holds a copy of every open file for a moment,
/// and with it the lock.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // The lock goes with the last copy of the file if this fails.
        let _ = self.0.unlock();
    }
}

/// The lock that whoever deletes holds; `None` when another process has it.
pub(crate) fn gc_lock(compat: &CompatDir) -> io::Result<Option<Locked>> {
    let lock = volume::open_private(&compat.gc_lock())?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(Locked(lock))),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

fn total(state: &State) -> u64 {
    state.index.n_bytes() + state.n_other_bytes
}

fn over_budget(shared: &Shared, state: &State) -> bool {
    total(state) > shared.options.budget_bytes
}

/// Brings the files below the budget, with some room.
pub(crate) fn evict(shared: &Shared) {
    if over_budget(shared, &shared.state()) {
        evict_to(shared, shared.options.budget_bytes / 20 * KEEP_TWENTIETHS);
    }
}

fn evict_to(shared: &Shared, target: u64) {
    // States of other models go first.
    let excess = |shared: &Shared| total(&shared.state()).saturating_sub(target);
    if excess(shared) > 0
        && let Ok(freed) = evict_others(&shared.dir, &shared.compat, excess(shared), shared.now())
    {
        let mut state = shared.state();
        state.n_other_bytes = state.n_other_bytes.saturating_sub(freed);
    }
    let Ok(Some(_lock)) = gc_lock(&shared.compat) else {
        return;
    };
    shared.refresh();
    let _folder = shared.folder();
    let now = shared.now();
    while excess(shared) > 0 {
        let mut state = shared.state();
        let Some((victim, _)) = state.index.next_victim(now) else {
            return;
        };
        state.index.take(&victim);
        state.counts.n_evicted += u64::from(victim.point.is_some());
        drop(state);
        delete_files(&shared.compat, &victim);
    }
}

/// Bytes of everything in the folder that is not a block or a point of this
/// key, and whether other keys have any.
pub(crate) fn measure_others(dir: &Path, own: &CompatDir) -> io::Result<(u64, bool)> {
    let mut n_bytes = 0;
    let mut has_others = false;
    for listed in volume::list(dir)? {
        if !listed.is_dir {
            n_bytes += listed.n_bytes;
        } else if listed.path != own.path {
            let files = volume::list_deep(&listed.path)?;
            n_bytes += files.iter().map(|file| file.n_bytes).sum::<u64>();
            has_others |= is_compat_folder(&listed.name)
                && files.iter().any(|file| file.name.ends_with(".pt"));
        }
    }
    for listed in volume::list(&own.path)? {
        if !listed.is_dir {
            n_bytes += listed.n_bytes;
        }
    }
    Ok((n_bytes, has_others))
}

/// Frees bytes in the quarantine and in the folders of other keys; returns how
/// many were freed.
fn evict_others(dir: &Path, own: &CompatDir, wanted: u64, now: SystemTime) -> io::Result<u64> {
    let mut freed = 0;
    for listed in volume::list_deep(&dir.join(QUARANTINE_DIR))? {
        if freed >= wanted {
            return Ok(freed);
        }
        volume::remove(&listed.path)?;
        freed += listed.n_bytes;
    }
    for listed in volume::list(dir)? {
        if listed.is_dir && is_compat_folder(&listed.name) && listed.path != own.path {
            let compat = CompatDir { path: listed.path };
            freed += evict_folder(&compat, wanted.saturating_sub(freed), now)?;
        }
    }
    Ok(freed)
}

/// Frees bytes of one key's folder, least valuable first.
pub(crate) fn evict_folder(compat: &CompatDir, wanted: u64, now: SystemTime) -> io::Result<u64> {
    let mut freed = 0;
    if wanted == 0 {
        return Ok(freed);
    }
    let Some(_lock) = gc_lock(compat)? else {
        return Ok(freed);
    };
    let (mut index, _): (Index, _) = scan_unknown(compat)?;
    journal::read(&compat.journal(), &mut index);
    while freed < wanted
        && let Some((victim, n_bytes)) = index.next_victim(now)
    {
        index.take(&victim);
        delete_files(compat, &victim);
        freed += n_bytes;
    }
    Ok(freed)
}

/// Deletes the point's file, then those of the blocks. Whoever calls holds the
/// folder's lock.
fn delete_files(compat: &CompatDir, victim: &Victim) {
    let point = victim.point.map(|id| compat.point(id));
    let blocks = victim.blocks.iter().map(|id| compat.block(*id));
    for path in point.into_iter().chain(blocks) {
        // A file that cannot be deleted is found again by the next scan.
        let _ = volume::remove(&path);
    }
}
