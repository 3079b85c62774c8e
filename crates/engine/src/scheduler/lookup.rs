//! What a waiting request learns of the disk, while others go on.

use std::time::{Duration, Instant};

use super::choice::n_alike;
use super::{Event, MIN_COPY_GAIN, Request, Scheduler};
use crate::store::{Answer, Awaited, Read};

/// How long a request waits for the store before it does without: a file system that does
/// not answer costs this much and no reply. A state that takes longer to compute is waited
/// for as long as that takes.
pub const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a tick waits for the store when there is nothing else to do. A caller that is
/// told something meanwhile obeys that much later.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// How far a waiting request is with the store.
#[derive(Debug)]
pub(super) enum Lookup {
    /// It has yet to ask.
    Unasked,
    /// The folder is looked at.
    Looking(Awaited<()>),
    /// A state is read, which computing would take so long for.
    Reading(Awaited<Option<Read>>, Duration),
    /// This is what there is.
    Done(Option<Box<Read>>),
}

impl Lookup {
    /// Waits for so long at most, and says whether the next thing can be done.
    fn wait(&mut self, time: Duration) -> bool {
        match self {
            Lookup::Unasked | Lookup::Done(_) => true,
            Lookup::Looking(look) => match look.within(time) {
                Answer::Waiting => look.age() >= STORE_PATIENCE,
                // The lost answer that follows means the same.
                Answer::Done(()) | Answer::Lost => true,
            },
            Lookup::Reading(read, patience) => {
                let found = match read.within(time) {
                    Answer::Waiting if read.age() < *patience => return false,
                    Answer::Waiting | Answer::Lost => None,
                    Answer::Done(found) => found,
                };
                *self = Lookup::Done(found.map(Box::new));
                true
            }
        }
    }
}

impl Scheduler {
    /// Begins to look for what other processes stored, if the request may use it.
    pub(super) fn look(&self, request: &Request) -> Lookup {
        match &self.store {
            Some(store) if request.use_cache => Lookup::Looking(store.look()),
            _ => Lookup::Done(None),
        }
    }

    /// Waits a moment for the store, when nothing else can be done.
    pub(super) fn admit_from_store(&mut self, events: &mut Vec<Event>) {
        let began = Instant::now();
        while self.running.is_empty()
            && let Some(first) = self.waiting.front_mut()
            && let Some(left) = IDLE_WAIT.checked_sub(began.elapsed())
        {
            first.lookup.wait(left);
            self.admit(events);
        }
    }

    /// The waiting request that gets the next of `n_idle` slots. One that waits for the
    /// store keeps a slot free for itself and holds up nobody else.
    pub(super) fn next_ready(&mut self, n_idle: usize) -> Option<usize> {
        let mut n_kept = 0;
        for at in 0..self.waiting.len() {
            if n_kept == n_idle {
                return None;
            }
            if self.awaits(at) || self.follows_lookup(at) {
                continue;
            }
            if self.has_looked(at) {
                return Some(at);
            }
            n_kept += 1;
        }
        None
    }

    /// Whether a request is best made when an earlier one has what the store has of it.
    fn follows_lookup(&self, at: usize) -> bool {
        let request = &self.waiting[at].request;
        let prompt = request.findable();
        let mut earlier = self.waiting.range(..at).filter(|earlier| {
            let reads = !matches!(earlier.lookup, Lookup::Done(_));
            reads && earlier.request.use_cache
        });
        request.use_cache
            && earlier.any(|earlier| {
                let n_alike = n_alike(&earlier.request.tokens, prompt);
                n_alike.min(prompt.len() - 1) >= self.n_held(prompt) + MIN_COPY_GAIN
            })
    }

    /// Goes on with what a request asks of the store; whether that is over.
    fn has_looked(&mut self, at: usize) -> bool {
        let mut lookup = std::mem::replace(&mut self.waiting[at].lookup, Lookup::Unasked);
        let goes_on = lookup.wait(Duration::ZERO);
        if goes_on && !matches!(lookup, Lookup::Done(_)) {
            lookup = self.read(&self.waiting[at].request);
        }
        let is_over = matches!(lookup, Lookup::Done(_));
        self.waiting[at].lookup = lookup;
        is_over
    }

    /// Begins to read the longest stored state that a prompt goes on from, when that is
    /// faster than computing what the slots do not have.
    fn read(&self, request: &Request) -> Lookup {
        let prompt = request.findable();
        let Some(store) = &self.store else {
            return Lookup::Done(None);
        };
        let n_held = self.n_held(prompt);
        let mut candidates = store.find_known(prompt, None);
        candidates.retain(|candidate| {
            let gain = candidate.n_tokens.saturating_sub(n_held);
            candidate.n_tokens < prompt.len()
                && self.rates.is_worth_loading(gain, candidate.n_bytes)
        });
        let Some(longest) = candidates.first() else {
            return Lookup::Done(None);
        };
        let computing = self.rates.prefill_time(longest.n_tokens - n_held);
        let patience = computing.map_or(STORE_PATIENCE, |time| time.max(STORE_PATIENCE));
        Lookup::Reading(store.read(candidates), patience)
    }

    /// Tokens of a prompt that some slot can give.
    pub(super) fn n_held(&self, prompt: &[u32]) -> usize {
        let held = (0..self.slots.len())
            .filter(|slot| !self.slots[*slot].is_private)
            .map(|slot| self.reusable(slot, prompt));
        held.max().unwrap_or(0)
    }
}
