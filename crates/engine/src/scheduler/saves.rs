//! When states go to disk, and when they come back.

use std::time::{Duration, Instant};

use ds4_model::{BackendError, Frontier, StoredRows};

use super::choice::Loss;
use super::snapshots::{Passage, Place};
use super::{Request, Scheduler};
use crate::engine::Engine;
use crate::slots::Group;
use crate::store::{NotStored, PointSaved, Reason, RowSource, SaveOptions, rows_of};

/// Tokens after the last stored state at which the next one is stored: in a long
/// prompt, so that an interrupted prefill does not begin at the beginning again, and
/// where a turn ends.
pub const SAVE_INTERVAL: usize = 8192;
/// Tokens after the last stored state from which on an anchor is stored.
pub const MIN_ANCHOR_GAIN: usize = 1024;
/// Default of [`SchedulerOptions::idle_save`](super::SchedulerOptions).
pub const IDLE_SAVE: Duration = Duration::from_secs(20);

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
            _ => self.slots[slot].unsaved_since = Some(Instant::now()),
        }
    }

    /// Saves the slots in which nothing has run for
    /// [`SchedulerOptions::idle_save`](super::SchedulerOptions), and says in how long
    /// the next one is due. Every tick does so; a caller that has nothing to tick for
    /// calls it when that time has passed.
    pub fn save_idle(&mut self) -> Option<Duration> {
        self.store.as_ref()?;
        let mut next: Option<Duration> = None;
        for slot in 0..self.slots.len() {
            let Some(since) = self.slots[slot].unsaved_since else {
                continue;
            };
            let left = self.options.idle_save.saturating_sub(since.elapsed());
            if left.is_zero() {
                self.save_turn(slot, Reason::TurnEnd);
            } else {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }

    /// Saves every slot and waits until it is written: what a server does before
    /// it ends.
    pub fn save_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.save_turn(slot, Reason::Shutdown);
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

    /// Saves a slot where it ends and at the end of its last prompt.
    fn save_turn(&mut self, slot: usize, reason: Reason) {
        self.slots[slot].unsaved_since = None;
        let (prompt_end, len) = (self.slots[slot].prompt_end, self.engine.len(slot));
        if prompt_end < len && self.slots[slot].snapshots.at(prompt_end).is_some() {
            self.save_at(slot, prompt_end, Reason::TurnEnd);
        }
        if len > 0 {
            self.save_at(slot, len, reason);
        }
    }

    /// Saves a slot at its length or at one of its snapshots, if it is not stored.
    fn save_at(&mut self, slot: usize, len: usize, reason: Reason) {
        let kept = &mut self.slots[slot];
        let Some(store) = &self.store else {
            return;
        };
        if kept.is_private || kept.stored_within(len).last() == Some(&len) {
            return;
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
                    return;
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
                if matches!(saved.point, PointSaved::Queued | PointSaved::Known) {
                    kept.note_stored(len);
                }
            }
            Err(error) => self
                .notices
                .push(format!("a state could not be saved: {error}")),
        }
    }

    /// Reads the longest stored state that a prompt goes on from into an idle slot,
    /// when that is faster than computing what the slots do not have. The slot and
    /// the tokens read.
    pub(super) fn load(&mut self, idle: &[usize], request: &Request) -> Option<(usize, usize)> {
        let prompt = &request.tokens;
        let store = self.store.as_ref()?;
        let held = (0..self.slots.len())
            .filter(|slot| !self.slots[*slot].is_private)
            .map(|slot| self.reusable(slot, prompt));
        let n_held = held.max().unwrap_or(0);
        let candidates = store.find(prompt, None);
        let worth = |n_tokens: usize, n_bytes| {
            let gain = n_tokens.saturating_sub(n_held);
            n_tokens < prompt.len() && self.rates.is_worth_loading(gain, n_bytes)
        };
        let started = Instant::now();
        let loaded = candidates
            .iter()
            .filter(|c| worth(c.n_tokens, c.n_bytes))
            // What cannot be read is told in the store's notices.
            .find_map(|c| store.load(c).ok())?;
        let n_loaded = loaded.tokens.len();
        let (loss, slot) = self.spare(idle, prompt, n_loaded)?;
        let before = started.elapsed();
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
            .note_load(loaded.n_bytes, before + started.elapsed());
        self.slots[slot].note_stored(n_loaded);
        Some((slot, n_loaded))
    }

    /// Why the store had no more of a prompt, if there is one.
    pub(super) fn not_stored(&self, prompt: &[u32], n_used: usize) -> Option<NotStored> {
        Some(self.store.as_ref()?.not_stored(prompt, n_used))
    }
}
