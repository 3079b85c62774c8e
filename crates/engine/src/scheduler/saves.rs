//! When states go to disk, and when they come back.

use std::time::{Duration, Instant};

use ds4_model::{BackendError, Frontier, StoredRows};

use super::choice::Loss;
use super::snapshots::{Passage, Place, TURN_GAP};
use super::{MIN_LOAD_GAIN, Request, Scheduler};
use crate::engine::Engine;
use crate::slots::Group;
use crate::store::{NotStored, PointSaved, Read, Reason, RowSource, SaveOptions, Store, rows_of};

/// Tokens after the last stored state at which the next one is stored: in a long
/// prompt, so that an interrupted prefill does not begin at the beginning again, and
/// where a turn ends.
pub const SAVE_INTERVAL: usize = 8192;
/// Tokens after the last stored state from which on an anchor is stored.
pub const MIN_ANCHOR_GAIN: usize = 1024;
/// Default of [`SchedulerOptions::idle_save`](super::SchedulerOptions).
pub const IDLE_SAVE: Duration = Duration::from_secs(20);

/// How long a slot rests, at least, before a state that the store did not take is offered
/// again.
pub const SAVE_RETRY: Duration = Duration::from_secs(30);

/// The state of a slot at a snapshot: its rings are in the snapshot, and its
/// compressed rows are still in the slot.
struct SnapshotRows<'a> {
    engine: &'a mut Engine,
    slot: usize,
    frontier: &'a Frontier,
}

impl RowSource for SnapshotRows<'_> {
    fn read_groups(&mut self, groups: &[Group]) -> Result<Vec<StoredRows>, BackendError> {
        let in_frontier = |(layer, kind, _): &Group| self.frontier.rows(*layer, *kind);
        let in_slot: Vec<Group> = groups
            .iter()
            .filter(|group| in_frontier(group).is_none())
            .cloned()
            .collect();
        let mut read = self.engine.read_groups(self.slot, &in_slot)?.into_iter();
        let rows = groups.iter().map(|group| match in_frontier(group) {
            Some(stored) => rows_of(stored, group.0, group.1, group.2.clone()),
            None => Ok(read.next().expect("one for every group of the slot")),
        });
        rows.collect()
    }
}

impl Scheduler {
    /// Keeps what a step brought to a place worth coming back to.
    pub(super) fn keep_progress(&mut self, passages: &[Passage]) {
        for passage in passages {
            let Passage { slot, to, .. } = *passage;
            if self.slots[slot].is_private {
                continue;
            }
            for (len, place) in passage.places() {
                self.take_snapshot(slot, len, place);
                let n_unstored = self.slots[slot].n_unstored(len);
                if place == Place::Anchor && n_unstored >= MIN_ANCHOR_GAIN {
                    self.save_at(slot, len, Reason::Anchor);
                }
            }
            if to < passage.n_prompt && self.slots[slot].n_unstored(to) >= SAVE_INTERVAL {
                self.save_at(slot, to, Reason::Interval);
            }
        }
    }

    /// Takes a snapshot of a slot at one of its lengths, if the rings reach it.
    pub(super) fn take_snapshot(&mut self, slot: usize, len: usize, place: Place) {
        let most_bytes = self.options.snapshot_bytes;
        let reaches = len <= self.engine.len(slot) && len >= self.engine.rewind_floor(slot);
        let known = &mut self.slots[slot].snapshots;
        if most_bytes == 0 || known.keep_for(len, place) || !reaches {
            return;
        }
        match self.engine.frontier_at(slot, len) {
            Ok(frontier) => known.insert(place, frontier, most_bytes),
            Err(error) => self
                .notices
                .push(format!("no snapshot was taken at token {len}: {error}")),
        }
    }

    /// Does what is due when a sequence has left its slot.
    pub(super) fn leave(&mut self, slot: usize) {
        self.clock += 1;
        self.slots[slot].last_used = self.clock;
        if self.slots[slot].is_private {
            self.empty(slot);
            return;
        }
        let len = self.engine.len(slot);
        match self.slots[slot].n_unstored(len) {
            0 => {}
            n if n >= SAVE_INTERVAL => self.save_turn(slot, Reason::TurnEnd),
            _ => {
                self.slots[slot].unsaved_since = Some(Instant::now());
                self.slots[slot].was_refused = false;
            }
        }
    }

    /// Takes note of what the store gave up after it had taken it.
    fn note_dropped(&mut self) {
        let dropped = self.store.as_ref().map(Store::take_dropped);
        let dropped = dropped.unwrap_or_default();
        if dropped.is_empty() {
            return;
        }
        for slot in 0..self.slots.len() {
            let rests = self.running.iter().all(|s| s.slot != slot);
            let kept = &mut self.slots[slot];
            if kept.note_dropped(&dropped) && rests {
                kept.unsaved_since = Some(Instant::now());
                kept.was_refused = true;
            }
        }
    }

    /// Saves the slots in which nothing has run for
    /// [`SchedulerOptions::idle_save`](super::SchedulerOptions), and says in how long
    /// the next one is due. Every tick does so; a caller that has nothing to tick for
    /// calls it when that time has passed.
    pub fn save_idle(&mut self) -> Option<Duration> {
        self.note_dropped();
        // What is queued may yet be given up.
        let is_writing = self.store.as_ref()?.usage().n_queued_bytes > 0;
        let mut next: Option<Duration> = is_writing.then_some(SAVE_RETRY);
        for slot in 0..self.slots.len() {
            let Some(since) = self.slots[slot].unsaved_since else {
                continue;
            };
            let rest = match self.slots[slot].was_refused {
                true => self.options.idle_save.max(SAVE_RETRY),
                false => self.options.idle_save,
            };
            let left = rest.saturating_sub(since.elapsed());
            if left.is_zero() {
                self.save_turn(slot, Reason::TurnEnd);
                next = Some(next.map_or(SAVE_RETRY, |next| next.min(SAVE_RETRY)));
            } else {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }

    /// Saves every slot and waits until it is written: what a server does before
    /// it ends.
    pub fn save_all(&mut self) {
        self.note_dropped();
        for slot in 0..self.slots.len() {
            self.save_turn(slot, Reason::Shutdown);
            self.save_last_user(slot);
        }
        if let Some(store) = &self.store {
            store.flush();
        }
    }

    /// Saves what is in a slot that is about to be given up.
    pub(super) fn save_given_up(&mut self, slot: usize) {
        if self.slots[slot].unsaved_since.is_some() {
            self.save_turn(slot, Reason::TurnEnd);
        }
    }

    /// Saves a slot where it ends and at the end of its last prompt. What the store does
    /// not take now is offered again later.
    fn save_turn(&mut self, slot: usize, reason: Reason) {
        self.slots[slot].unsaved_since = None;
        let (prompt_end, len) = (self.slots[slot].prompt_end, self.engine.len(slot));
        let mut is_refused = false;
        if prompt_end < len && self.slots[slot].snapshots.at(prompt_end).is_some() {
            is_refused |= !self.save_at(slot, prompt_end, Reason::TurnEnd);
        }
        if len > 0 {
            is_refused |= !self.save_at(slot, len, reason);
        }
        if is_refused {
            self.slots[slot].unsaved_since = Some(Instant::now());
            self.slots[slot].was_refused = true;
        }
    }

    /// Saves a slot where the last text of its user begins, or just before: whoever goes on
    /// tomorrow may put it in other words.
    fn save_last_user(&mut self, slot: usize) {
        let kept = &mut self.slots[slot];
        let at = kept.snapshots.longest_within(kept.last_user);
        if at > 0 && at + TURN_GAP >= kept.last_user {
            kept.forget_stored(at);
            self.save_at(slot, at, Reason::Shutdown);
        }
    }

    /// Saves a slot at its length or at one of its snapshots, if it is not stored. Whether
    /// there is nothing to be gained by saying so again.
    fn save_at(&mut self, slot: usize, len: usize, reason: Reason) -> bool {
        let kept = &mut self.slots[slot];
        let Some(store) = &self.store else {
            return true;
        };
        if kept.is_private || kept.n_stored(len) == len {
            return true;
        }
        let taken;
        let frontier = match kept.snapshots.at(len) {
            Some(frontier) => frontier,
            None => match self.engine.frontier_at(slot, len) {
                Ok(frontier) => {
                    taken = frontier;
                    &taken
                }
                Err(error) => {
                    let note = format!("a state could not be saved: {error}");
                    self.notices.push(note);
                    return true;
                }
            },
        };
        let tokens = self.engine.tokens(slot)[..len].to_vec();
        let options = SaveOptions {
            reason,
            text_keys: &[],
            wait: reason == Reason::Shutdown,
        };
        let mut rows = SnapshotRows {
            engine: &mut self.engine,
            slot,
            frontier,
        };
        match store.save(&tokens, &mut rows, &options) {
            Ok(saved) => {
                if let Some(id) = saved.id {
                    kept.note_stored(len, id);
                }
                use PointSaved::{OverWriteBudget, Paused, QueueFull};
                !matches!(saved.point, QueueFull | OverWriteBudget | Paused)
            }
            Err(error) => {
                let note = format!("a state could not be saved: {error}");
                self.notices.push(note);
                true
            }
        }
    }

    /// Puts a state that was read into an idle slot, when the slots still have less of the
    /// prompt. The slot and the tokens read.
    pub(super) fn load(
        &mut self,
        idle: &[usize],
        request: &Request,
        read: Read,
    ) -> Option<(usize, usize)> {
        let prompt = &request.tokens;
        let Read { loaded, time, id } = read;
        let n_loaded = loaded.tokens.len();
        if n_loaded < self.n_held(prompt) + MIN_LOAD_GAIN || !prompt.starts_with(&loaded.tokens) {
            return None;
        }
        let (loss, slot) = self.spare(idle, prompt, n_loaded)?;
        if loss == Loss::State {
            self.save_given_up(slot);
        }
        self.empty(slot);
        let started = Instant::now();
        if let Err(error) = self.engine.import(slot, &loaded.tokens, &loaded.state) {
            self.notices
                .push(format!("a stored state cannot be used: {error}"));
            self.engine.clear(slot);
            return None;
        }
        self.rates
            .note_load(loaded.n_bytes, time + started.elapsed());
        self.slots[slot].note_stored(n_loaded, id);
        Some((slot, n_loaded))
    }

    /// Why the store had no more of a prompt, if there is one.
    pub(super) fn not_stored(&self, prompt: &[u32], n_used: usize) -> Option<NotStored> {
        Some(self.store.as_ref()?.not_stored(prompt, n_used))
    }
}
