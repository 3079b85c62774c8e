//! Requests to steps.
//!
//! Every [`Scheduler::tick`] ends the step that is under way, chooses the tokens, and
//! starts the next step before it says what happened: a row for every sequence that is
//! decoding, and chunks of those that are prefilling. What the caller does with the
//! events it does while the device works. A caller that wants to cancel, to constrain or
//! to force does so between ticks.
//!
//! # What a request finds
//!
//! A slot keeps its tokens when its sequence ends, and snapshots of the places in
//! its past that are worth going back to: where a request went on from, where a
//! prompt ended, its anchors, every 4,096 tokens, and the multiples of 128 near the
//! end that steps ended at. A prompt can begin at any of them, and at the last 64
//! tokens, which the rings still hold. [`SchedulerOptions::snapshot_bytes`] bounds
//! what they take.
//!
//! A request goes on where most of its prompt is: in a slot whose every token it
//! has, in one whose last turn it does over, or in a copy of another's beginning,
//! also of one that runs. What gives way is an empty slot, else the idle one that
//! was used longest ago; a conversation is never cut short for a beginning that it
//! shares with others while another slot can be had. A request whose prompt is being
//! prefilled by another one waits for it and computes none of that part itself.
//!
//! # What is on disk
//!
//! With a store, states are saved at anchors, every [`SAVE_INTERVAL`] tokens, when
//! nothing has run in a slot for [`SchedulerOptions::idle_save`], before a slot is
//! given up, and at the end. A request whose prompt goes on from a stored state is
//! given it when reading it is faster than computing what the slots do not have, by
//! the rates measured so far. No failure of the store is one of a request.

mod choice;
mod lookup;
mod rates;
mod report;
mod request;
mod saves;
mod slot;
mod snapshots;
mod step;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ds4_model::StepError;

use crate::engine::Engine;
use crate::plan::OpenError;
use crate::sampler::{Constraint, Sampler};
use crate::store::{Notice, Read, Store};

use choice::{Start, n_alike};
use lookup::Lookup;
use rates::Rates;
use slot::Slot;
use snapshots::{Place, TURN_GAP, prompt_end};
use step::Flight;

pub use lookup::STORE_PATIENCE;
pub use rates::{FIRST_ROWS, MIN_LOAD_GAIN, MIN_PREFILL_ROWS, READ_RATE};
pub use report::{Event, FinishReason, Reuse, SlotUse, Timings};
pub use request::{PromptRow, Request, RequestError, SequenceId};
pub use saves::{IDLE_SAVE, MIN_ANCHOR_GAIN, SAVE_INTERVAL, SAVE_RETRY};
pub(crate) use snapshots::most_snapshot_bytes;
pub use snapshots::{
    GENERATION_TOKENS, MIN_ANCHOR, RECENT_TOKENS, SNAPSHOT_BYTES, SNAPSHOT_INTERVAL,
    SNAPSHOT_STRIDE,
};

/// Rows of a prefill chunk in a step that also decodes, until it is known how long such
/// steps take.
pub const MIXED_CHUNK: usize = 128;
/// [`SchedulerOptions::prefill_time`] of somebody who waits.
pub const PREFILL_TIME: Duration = Duration::from_millis(800);
/// [`SchedulerOptions::mixed_time`] of somebody who waits.
pub const MIXED_TIME: Duration = Duration::from_millis(250);
/// Tokens that a running slot must have, or be about to have, more than the idle
/// ones for a request to be begun as a copy of it.
pub const MIN_COPY_GAIN: usize = 64;
/// Requests that can wait for a slot.
pub const MAX_WAITING: usize = 256;
/// Tokens of [`Reuse::held_next`].
const MAX_HELD_NEXT: usize = 8;

/// How a scheduler keeps what was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Bytes of memory that the snapshots of one slot may take; 0 for none.
    pub snapshot_bytes: usize,
    /// How long nothing runs in a slot before its state goes to disk.
    pub idle_save: Duration,
    /// How long a step of prompt tokens alone may take, by the rate measured so far: so
    /// long does a prompt that is given up go on. The first one has [`FIRST_ROWS`]. `None` for
    /// as many rows as there can be, whatever they take.
    pub prefill_time: Option<Duration>,
    /// How long a step may take in which prompt tokens are computed beside sequences that
    /// are decoding: so long do these wait for their next token. `None` for
    /// [`MIXED_CHUNK`] rows, whatever they take.
    pub mixed_time: Option<Duration>,
}

impl SchedulerOptions {
    /// Those of a program with somebody before it: steps of [`PREFILL_TIME`] and
    /// [`MIXED_TIME`] at most.
    pub fn responsive() -> SchedulerOptions {
        SchedulerOptions {
            prefill_time: Some(PREFILL_TIME),
            mixed_time: Some(MIXED_TIME),
            ..SchedulerOptions::default()
        }
    }
}

impl Default for SchedulerOptions {
    fn default() -> SchedulerOptions {
        SchedulerOptions {
            snapshot_bytes: SNAPSHOT_BYTES,
            idle_save: IDLE_SAVE,
            prefill_time: None,
            mixed_time: None,
        }
    }
}

struct Waiting {
    id: SequenceId,
    request: Request,
    constraint: Constraint,
    /// The sequence whose prompt begins like this one, and the tokens of it that this
    /// one waits for. It runs, and what runs waits for nobody: no request waits for ever.
    awaits: Option<(SequenceId, usize)>,
    /// What it asks of the store.
    lookup: Lookup,
}

struct Sequence {
    id: SequenceId,
    slot: usize,
    request: Request,
    sampler: Sampler,
    constraint: Constraint,
    reuse: Reuse,
    /// Tokens chosen or forced and not yet part of a step, while decoding.
    next: Vec<u32>,
    timings: Timings,
    /// Whether it was given up while a step of it was under way.
    is_cancelled: bool,
}

impl Sequence {
    fn is_prefilling(&self) -> bool {
        self.timings.n_done < self.request.tokens.len()
    }

    /// Where the last text of the user begins, when it is far enough behind what was there for a
    /// snapshot of its own.
    fn last_user(&self) -> Option<usize> {
        let at = self.request.last_user;
        (at >= MIN_ANCHOR && at > self.timings.n_cached + TURN_GAP).then_some(at)
    }

    /// Whether the next tokens of its prompt have logits that are wanted.
    fn is_scoring(&self) -> bool {
        let from = self.request.scored_from;
        self.is_prefilling() && from.is_some_and(|from| from <= self.timings.n_done)
    }
}

/// An engine and the sequences that run on it.
pub struct Scheduler {
    engine: Engine,
    options: SchedulerOptions,
    running: Vec<Sequence>,
    waiting: VecDeque<Waiting>,
    slots: Vec<Slot>,
    /// What the next tick says first.
    pending: Vec<Event>,
    /// The step under way.
    flight: Option<Flight>,
    /// A row of logits that candidates did not decide.
    row: Vec<f32>,
    /// Rows of prompts that nobody took yet.
    prompt_rows: Vec<PromptRow>,
    /// When the last step ended.
    landed: Option<Instant>,
    turnaround: Option<Duration>,
    /// Counts how often a slot was taken or left.
    clock: u64,
    next_id: u64,
    store: Option<Store>,
    rates: Rates,
    /// What went wrong with what is kept, for the log.
    notices: Vec<String>,
}

impl Scheduler {
    /// Takes over an engine.
    pub fn new(engine: Engine) -> Scheduler {
        Scheduler {
            slots: (0..engine.n_slots()).map(|_| Slot::default()).collect(),
            engine,
            options: SchedulerOptions::default(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            pending: Vec::new(),
            flight: None,
            row: Vec::new(),
            prompt_rows: Vec::new(),
            landed: None,
            turnaround: None,
            clock: 0,
            next_id: 0,
            store: None,
            rates: Rates::default(),
            notices: Vec::new(),
        }
    }

    /// Keeps what was computed otherwise than by default.
    pub fn with_options(mut self, options: SchedulerOptions) -> Scheduler {
        self.options = options;
        self
    }

    /// Keeps states on disk too.
    pub fn with_store(mut self, store: Store) -> Scheduler {
        self.store = Some(store);
        self
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// What happened to the store and the snapshots that the log should say; each is
    /// told once.
    pub fn take_store_notices(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.notices);
        if let Some(store) = &self.store {
            lines.extend(store.take_notices().iter().map(Notice::to_string));
        }
        lines
    }

    /// The rows that [`Request::scored_from`] asked for and the last ticks computed, those of a
    /// prompt in order. They are to be taken after every tick: each is as long as the vocabulary.
    pub fn take_prompt_rows(&mut self) -> Vec<PromptRow> {
        std::mem::take(&mut self.prompt_rows)
    }

    /// Bytes of memory that the snapshots of a slot take.
    pub fn snapshot_bytes(&self, slot: usize) -> usize {
        self.slots[slot].snapshots.n_bytes()
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Time between the last two steps in which the device had nothing to do: from the end
    /// of the one to the start of the other. `None` when the last tick did not do both.
    pub fn turnaround(&self) -> Option<Duration> {
        self.turnaround
    }

    /// Gives the engine back; running sequences are dropped.
    pub fn into_engine(mut self) -> Engine {
        self.abandon_step();
        self.engine
    }

    /// Gives all slots up and takes as many that hold `context` tokens each; sequences are
    /// dropped. On an error the slots are as long as they were, and empty.
    pub fn set_context(&mut self, context: usize) -> Result<(), OpenError> {
        self.reset();
        self.engine.set_context(context)
    }

    /// Accepts a request; it runs as soon as a slot is idle.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        let n_vocab = self.engine.geometry().n_vocab;
        let context = self.engine.context();
        if request.tokens.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if request.tokens.len() >= context {
            return Err(RequestError::PromptTooLong {
                found: request.tokens.len(),
                context,
            });
        }
        if let Some(&token) = request.tokens.iter().find(|t| **t as usize >= n_vocab) {
            return Err(RequestError::Token { token, n_vocab });
        }
        request.sampling.validate(n_vocab)?;
        if self.waiting.len() >= MAX_WAITING {
            return Err(RequestError::QueueFull);
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let lookup = self.look(&request);
        self.waiting.push_back(Waiting {
            lookup,
            id,
            request,
            constraint: Constraint::default(),
            awaits: None,
        });
        Ok(id)
    }

    /// Ends a sequence; its slot keeps what was computed. A tick reports it as finished:
    /// the next one. Unknown and ended sequences are left alone.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(at) = self.waiting.iter().position(|w| w.id == id) {
            let Waiting { request, .. } = self.waiting.remove(at).expect("just found");
            self.pending.push(Event::Finished {
                id,
                reason: FinishReason::Cancelled,
                timings: Timings {
                    n_prompt: request.tokens.len(),
                    ..Timings::default()
                },
            });
        }
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            if self.is_in_flight(id) {
                self.running[at].is_cancelled = true;
                return;
            }
            let sequence = self.running.remove(at);
            self.leave(sequence.slot);
            self.pending.push(Event::Finished {
                id,
                reason: FinishReason::Cancelled,
                timings: sequence.timings,
            });
        }
    }

    /// Puts tokens into a reply after the last one reported, as if the model
    /// had chosen them: the end of a thinking block when its budget is spent.
    /// Only a decoding sequence takes them, and only as many as its slot holds.
    pub fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        let context = self.engine.context();
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id)
            && !sequence.is_prefilling()
        {
            let in_slot = sequence.request.tokens.len() + sequence.timings.n_decoded;
            let room = context.saturating_sub(in_slot);
            for &token in tokens.iter().take(room) {
                sequence.sampler.accept(token);
                sequence.next.push(token);
                sequence.timings.n_decoded += 1;
            }
        }
    }

    /// Says what a sequence may say next, until said otherwise. Between ticks it
    /// holds for the next token sampled.
    pub fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
            sequence.constraint = constraint;
        } else if let Some(waiting) = self.waiting.iter_mut().find(|w| w.id == id) {
            waiting.constraint = constraint;
        }
    }

    /// Whether a sequence waits or runs.
    pub fn contains(&self, id: SequenceId) -> bool {
        let runs = |s: &Sequence| s.id == id && !s.is_cancelled;
        self.running.iter().any(runs) || self.waiting.iter().any(|w| w.id == id)
    }

    /// What a running sequence found when it got its slot.
    pub fn reuse(&self, id: SequenceId) -> Option<Reuse> {
        let sequence = self.running.iter().find(|s| s.id == id)?;
        Some(sequence.reuse.clone())
    }

    /// What every slot is doing, by number.
    pub fn slots(&self) -> Vec<SlotUse> {
        (0..self.engine.n_slots())
            .map(|slot| {
                let sequence = self.running.iter().find(|s| s.slot == slot);
                SlotUse {
                    n_tokens: self.engine.len(slot),
                    sequence: sequence.map(|s| s.id),
                    n_decoded: sequence.map_or(0, |s| s.timings.n_decoded),
                }
            })
            .collect()
    }

    /// Drops every sequence and empties every slot, without a word to anybody:
    /// what is left to do when a step was interrupted half way.
    pub fn reset(&mut self) {
        self.abandon_step();
        self.running.clear();
        self.waiting.clear();
        self.pending.clear();
        self.prompt_rows.clear();
        for slot in 0..self.engine.n_slots() {
            self.empty(slot);
        }
    }

    /// Whether nothing runs, waits or is to be reported.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
            && self.waiting.is_empty()
            && self.pending.is_empty()
            && self.flight.is_none()
    }

    /// Ends the step that is under way, starts the next one, and says what happened. On an
    /// error the sequences of the step that failed are gone, and their slots are empty; the
    /// others go on.
    pub fn tick(&mut self) -> Result<Vec<Event>, StepError> {
        let mut events = std::mem::take(&mut self.pending);
        if let Err(error) = self.land(&mut events) {
            self.pending = events;
            return Err(error);
        }
        self.save_idle();
        self.admit(&mut events);
        if events.is_empty() {
            self.admit_from_store(&mut events);
        }
        if let Err(error) = self.launch() {
            self.pending = events;
            return Err(error);
        }
        #[cfg(debug_assertions)]
        if self.flight.is_none() {
            self.check_integrity().expect("what is believed of slots");
        }
        Ok(events)
    }

    /// Says what of the slots does not fit together, if anything; to be asked when no step
    /// is under way.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.engine.check_integrity()?;
        for (slot, kept) in self.slots.iter().enumerate() {
            let len = self.engine.len(slot);
            let within = kept.snapshots.longest_within(usize::MAX);
            if within > len {
                return Err(format!(
                    "slot {slot} has a snapshot of {within} tokens and holds {len}"
                ));
            }
        }
        let mut taken: Vec<usize> = self.running.iter().map(|s| s.slot).collect();
        taken.sort_unstable();
        match taken.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("two sequences run in slot {}", pair[0])),
            None => Ok(()),
        }
    }

    /// Gives idle slots to waiting requests.
    fn admit(&mut self, events: &mut Vec<Event>) {
        loop {
            let idle: Vec<usize> = (0..self.engine.n_slots())
                .filter(|slot| self.running.iter().all(|s| s.slot != *slot))
                .collect();
            if idle.is_empty() {
                return;
            }
            let Some(at) = self.next_ready(idle.len()) else {
                return;
            };
            let waiting = self.waiting.remove(at).expect("just found");
            let Waiting {
                id,
                request,
                constraint,
                lookup,
                ..
            } = waiting;
            let read = match lookup {
                Lookup::Done(read) => read,
                _ => None,
            };
            let reuse = self.find(&idle, &request, read);
            let Reuse { slot, n_cached, .. } = reuse;
            let goes_on =
                reuse.from == slot && reuse.n_loaded == 0 && reuse.n_held == reuse.n_cached;
            let n_total = request.tokens.len();
            self.clock += 1;
            let taken = &mut self.slots[slot];
            taken.last_used = self.clock;
            taken.affinity = request.affinity;
            if goes_on {
                taken.turn_start = n_cached;
            } else if taken.turn_start > n_cached {
                // Nothing says that what was found is of the same conversation.
                taken.turn_start = 0;
            }
            taken.prompt_end = prompt_end(n_total);
            taken.last_user = request.last_user;
            taken.unsaved_since = None;
            taken.is_private = !request.use_cache;
            if n_cached > 0 {
                let place = match request.last_user.checked_sub(n_cached) {
                    Some(0..=TURN_GAP) => Place::LastUser,
                    _ => Place::TurnEnd,
                };
                self.take_snapshot(slot, n_cached, place);
            }
            events.push(Event::Prefill {
                id,
                n_done: n_cached,
                n_total,
                n_cached,
            });
            self.running.push(Sequence {
                id,
                slot,
                sampler: Sampler::new(request.sampling.clone(), &request.tokens),
                request,
                constraint,
                reuse,
                next: Vec::new(),
                timings: Timings {
                    n_prompt: n_total,
                    n_cached,
                    n_done: n_cached,
                    ..Timings::default()
                },
                is_cancelled: false,
            });
        }
    }

    /// Makes an idle slot hold as much of a prompt as can be had.
    fn find(&mut self, idle: &[usize], request: &Request, read: Option<Box<Read>>) -> Reuse {
        let prompt = request.findable();
        if !request.use_cache {
            let (_, slot) = self.spare(idle, prompt, 0).expect("an idle slot");
            self.save_given_up(slot);
            self.empty(slot);
            return Reuse {
                slot,
                from: slot,
                ignored: true,
                ..Reuse::default()
            };
        }
        let nearest = idle.iter().max_by_key(|slot| {
            let order = std::cmp::Reverse(**slot);
            (self.shared(**slot, prompt), order)
        });
        let nearest = self.held(*nearest.expect("an idle slot"), prompt);
        if let Some(read) = read
            && let Some((slot, n_loaded)) = self.load(idle, request, *read)
        {
            return Reuse {
                slot,
                n_cached: n_loaded,
                n_loaded,
                not_stored: self.not_stored(prompt, n_loaded),
                ..nearest
            };
        }
        let start = self.choose(idle, request);
        let found = match start {
            Start::Fresh { .. } => nearest,
            Start::Cut { slot: from, .. } | Start::Copy { from, .. } => self.held(from, prompt),
        };
        let given_up = match start {
            Start::Fresh { slot } | Start::Copy { to: slot, .. } => Some((slot, 0)),
            Start::Cut { slot, len } => {
                let is_over = self.slots[slot].repeats_turn_from(len);
                (!is_over).then_some((slot, len))
            }
        };
        if let Some((slot, len)) = given_up
            && self.shared(slot, prompt).max(len) < self.engine.len(slot)
        {
            self.save_given_up(slot);
        }
        let (slot, n_cached) = self.start(start);
        Reuse {
            slot,
            n_cached,
            not_stored: self.not_stored(prompt, n_cached),
            ..found
        }
    }

    /// What a slot holds of a prompt.
    fn held(&self, slot: usize, prompt: &[u32]) -> Reuse {
        let (held, n_shared) = (self.engine.tokens(slot), self.shared(slot, prompt));
        let next = held[n_shared..].iter().copied();
        Reuse {
            from: slot,
            n_shared,
            n_held: held.len(),
            held_next: next.take(MAX_HELD_NEXT).collect(),
            ..Reuse::default()
        }
    }

    /// Whether a waiting request waits for a part of another's prompt, with which its
    /// own begins. It does when it would otherwise compute that part a second time.
    fn awaits(&mut self, at: usize) -> bool {
        let Waiting {
            request, awaits, ..
        } = &self.waiting[at];
        let runs = |id| self.running.iter().any(|s| s.id == id);
        let source = match *awaits {
            Some((id, n_awaited)) if runs(id) => Some((id, n_awaited)),
            _ if !request.use_cache => None,
            _ => {
                let prompt = request.findable();
                let now = self.n_held(prompt);
                self.running
                    .iter()
                    .filter(|s| s.is_prefilling() && s.request.use_cache)
                    .map(|s| {
                        let n_alike = n_alike(&s.request.tokens, prompt);
                        (s.id, n_alike.min(prompt.len() - 1))
                    })
                    .filter(|(_, n_alike)| *n_alike >= now + MIN_COPY_GAIN)
                    .max_by_key(|(id, n_alike)| (*n_alike, std::cmp::Reverse(*id)))
            }
        };
        self.waiting[at].awaits = source;
        source.is_some_and(|(id, n_awaited)| {
            let mut running = self.running.iter();
            running.any(|s| s.id == id && s.is_prefilling() && s.timings.n_done < n_awaited)
        })
    }
}
