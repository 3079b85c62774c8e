//! Which slot a request gets, and what it goes on from.

use ds4_model::{BackendError, RestoreError};

use super::{MIN_COPY_GAIN, Request, Scheduler};

/// How a slot comes to hold the beginning of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It is emptied.
    Fresh { slot: usize },
    /// It is cut back to so many of its tokens.
    Cut { slot: usize, len: usize },
    /// It becomes a copy of another slot's first tokens.
    Copy { from: usize, to: usize, len: usize },
}

/// How little is lost with what a slot holds; what comes first is given up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// It is empty.
    Nothing,
    /// All of it is a beginning of the prompt that is found elsewhere.
    Copy,
    /// A conversation.
    State,
}

impl Scheduler {
    /// Chooses where a request goes on: where most of its prompt is. That slot is
    /// cut back in place only when that loses nothing, or the turn that the request
    /// does over, or when what would be given up instead is used more recently;
    /// otherwise the beginning is copied.
    pub(super) fn choose(&self, idle: &[usize], request: &Request) -> Start {
        let prompt = request.findable();
        let best_of = |slots: &mut dyn Iterator<Item = usize>| {
            slots
                .filter(|slot| !self.slots[*slot].is_private)
                .map(|slot| (self.reusable(slot, prompt), slot))
                .filter(|(n_tokens, _)| *n_tokens > 0)
                .max_by_key(|(n_tokens, at)| {
                    let slot = &self.slots[*at];
                    let is_own = slot.affinity.is_some() && slot.affinity == request.affinity;
                    (*n_tokens, is_own, slot.last_used)
                })
        };
        let in_idle = best_of(&mut idle.iter().copied());
        let in_busy = best_of(&mut self.running.iter().map(|s| s.slot));
        let n_idle = in_idle.map_or(0, |(n_tokens, _)| n_tokens);
        match (in_idle, in_busy) {
            (_, Some((len, from))) if len >= n_idle + MIN_COPY_GAIN => {
                let (_, to) = self.spare(idle, prompt, len).expect("an idle slot");
                Start::Copy { from, to, len }
            }
            (Some((len, from)), _) => self.cut_or_copy(idle, request, from, len),
            (None, _) => {
                let (_, slot) = self.spare(idle, prompt, 0).expect("an idle slot");
                Start::Fresh { slot }
            }
        }
    }

    fn cut_or_copy(&self, idle: &[usize], request: &Request, from: usize, len: usize) -> Start {
        let slot = &self.slots[from];
        let are_others = match (slot.affinity, request.affinity) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        let in_place = Start::Cut { slot: from, len };
        if len == self.engine.len(from) || slot.repeats_turn_from(len) && !are_others {
            return in_place;
        }
        let others: Vec<usize> = idle.iter().copied().filter(|s| *s != from).collect();
        match self.spare(&others, request.findable(), len) {
            Some((loss, to)) if loss < Loss::State || self.slots[to].last_used < slot.last_used => {
                Start::Copy { from, to, len }
            }
            _ => in_place,
        }
    }

    /// The slot of these that is given up first, when `n_found` tokens of the prompt
    /// are found elsewhere, and what is lost with it.
    pub(super) fn spare(
        &self,
        slots: &[usize],
        prompt: &[u32],
        n_found: usize,
    ) -> Option<(Loss, usize)> {
        let loss = |slot: usize| match self.engine.len(slot) {
            0 => Loss::Nothing,
            n if n <= n_found && self.shared(slot, prompt) == n => Loss::Copy,
            _ => Loss::State,
        };
        let all = slots.iter().map(|slot| (loss(*slot), *slot));
        all.min_by_key(|(loss, slot)| (*loss, self.slots[*slot].last_used))
    }

    /// Makes a slot hold the beginning of a prompt; the slot, and its tokens then.
    /// When the device fails the slot is empty.
    pub(super) fn start(&mut self, start: Start) -> (usize, usize) {
        let (slot, len, done) = match start {
            Start::Fresh { slot } => {
                self.empty(slot);
                return (slot, 0);
            }
            Start::Cut { slot, len } => (slot, len, self.cut(slot, len)),
            Start::Copy { from, to, len } => (to, len, self.copy(from, to, len)),
        };
        match done {
            Ok(()) => (slot, len),
            Err(error) => {
                let note = format!("a slot could not go back to token {len}: {error}");
                self.notices.push(note);
                self.empty(slot);
                (slot, 0)
            }
        }
    }

    /// Longest prefix of `prompt` that a slot can be cut back to, or copied up to. At
    /// least the prompt's last token is left to compute: its logits are wanted.
    pub(super) fn reusable(&self, slot: usize, prompt: &[u32]) -> usize {
        let shared = self.shared(slot, prompt).min(prompt.len() - 1);
        if shared == 0 || self.rings_reach(slot, shared) {
            return shared;
        }
        self.slots[slot].snapshots.longest_within(shared)
    }

    /// Tokens that a slot and a prompt begin with alike.
    pub(super) fn shared(&self, slot: usize, prompt: &[u32]) -> usize {
        n_alike(self.engine.tokens(slot), prompt)
    }

    fn rings_reach(&self, slot: usize, len: usize) -> bool {
        len == self.engine.len(slot) || len >= self.engine.rewind_floor(slot)
    }

    /// Cuts a slot back to a length that [`Scheduler::reusable`] gave.
    fn cut(&mut self, slot: usize, len: usize) -> Result<(), BackendError> {
        if self.engine.rewind(slot, len).is_err() {
            let frontier = self.slots[slot].snapshots.at(len);
            let frontier = frontier.expect("a length of the slot's own snapshots");
            device_result(self.engine.restore(slot, frontier))?;
        }
        self.slots[slot].cut(len);
        Ok(())
    }

    /// Makes an idle slot a copy of another one's first `len` tokens, a length that
    /// [`Scheduler::reusable`] gave, with the snapshots among them.
    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<(), BackendError> {
        self.empty(to);
        if self.rings_reach(from, len) {
            self.engine.fork(from, to);
        } else {
            let frontier = self.slots[from].snapshots.at(len);
            let frontier = frontier.expect("a length of the slot's own snapshots");
            device_result(self.engine.fork_at(frontier, to))?;
        }
        let most_bytes = self.options.snapshot_bytes;
        let [source, target] = self
            .slots
            .get_disjoint_mut([from, to])
            .expect("two different slots");
        for (place, frontier) in source.snapshots.within(len) {
            let carried = self.engine.carry(frontier, to);
            let carried = carried.expect("a snapshot below the copy's end");
            target.snapshots.insert(place, carried, most_bytes);
        }
        for (stored, id) in source.stored_within(len) {
            target.note_stored(*stored, *id);
        }
        self.cut(to, len)
    }

    /// Empties a slot and forgets what it held.
    pub(super) fn empty(&mut self, slot: usize) {
        self.engine.clear(slot);
        self.slots[slot].clear();
    }
}

/// Tokens that two lists begin with alike.
pub(super) fn n_alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A slot's own snapshots are part of its timeline: only the device can fail.
fn device_result(result: Result<(), RestoreError>) -> Result<(), BackendError> {
    match result {
        Ok(()) => Ok(()),
        Err(RestoreError::Backend(error)) => Err(error),
        Err(RestoreError::Rewind(error)) => unreachable!("{error}"),
    }
}
