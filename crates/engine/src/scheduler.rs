//! Requests to steps.
//!
//! Every [`Scheduler::tick`] is at most one step of the engine: a row for every sequence
//! that is decoding, and a chunk of one that is prefilling. A caller that wants
//! to cancel does so between ticks.
//!
//! # What a request finds
//!
//! A slot keeps its tokens when its sequence ends. A new request takes the idle
//! slot whose tokens share the longest prefix with its prompt, cut back to that
//! prefix: within the rings, or to the longest frontier below it. When a slot that
//! runs shares more, what it shares is copied to an idle one; when that part is still
//! being prefilled, the request waits until it is there, and computes none of it.
//! Frontiers are
//! taken while prompts are prefilled, at the last multiple of
//! [`FRONTIER_STRIDE`] before the prompt's end, where they are small. When the
//! cut would lose tokens and another slot is empty, the prefix is copied there
//! and the longer slot stays.
//!
//! # What is on disk
//!
//! With a store, a slot is saved where a prompt leaves a frontier, every
//! [`SAVE_INTERVAL`] tokens of a long one, and where a sequence ends. A request whose prompt
//! goes on from a stored state by at least [`MIN_LOAD_GAIN`] tokens more than
//! from any idle slot is given that state instead. No failure of the store is
//! one of a request.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ds4_model::{BackendError, Batch, Frontier, Outputs, StepError};

use crate::engine::Engine;
use crate::sampler::{Constraint, Sampler, SamplingError, SamplingOptions, TokenLogprobs};
use crate::store::{NotStored, Reason, SaveOptions, SlotRows, Store};

/// Positions at which frontiers are taken are multiples of this: there the
/// ratio-128 groups are empty.
pub const FRONTIER_STRIDE: usize = 128;
/// Frontiers kept for one slot; the oldest goes first.
pub const MAX_FRONTIERS: usize = 4;
/// Rows of a prefill chunk in a step that also decodes, so that decoding stays
/// responsive.
pub const MIXED_CHUNK: usize = 128;
/// Tokens of a prompt after which its state is saved, so that a long prefill that
/// is interrupted does not begin at the beginning again.
pub const SAVE_INTERVAL: usize = 8192;
/// Tokens that a stored state must be ahead of the slots to be read.
pub const MIN_LOAD_GAIN: usize = 256;
/// Tokens that a running slot must have, or be about to have, more than the idle
/// ones for a request to be begun as a copy of it.
pub const MIN_COPY_GAIN: usize = 64;
/// Requests that can wait for a slot.
pub const MAX_WAITING: usize = 256;
/// Tokens of [`Reuse::held_next`].
const MAX_HELD_NEXT: usize = 8;

/// Names a sequence for as long as the scheduler lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One reply to be generated.
#[derive(Clone, Debug)]
pub struct Request {
    /// The whole prompt.
    pub tokens: Vec<u32>,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the reply and are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Number of likeliest tokens to report for every generated one.
    pub n_logprobs: Option<usize>,
    /// Whether it may go on from what is kept, and is kept itself. If not, all of it
    /// is computed, and its slot is emptied when it ends.
    pub use_cache: bool,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nothing to continue.
    #[error("the prompt is empty, expected at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for a token.
    #[error(
        "the prompt has {found} tokens and the context holds {context}: shorten it or use a longer --ctx"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens of a slot.
        context: usize,
    },
    /// A token is outside the vocabulary.
    #[error("token id {token} is not in the vocabulary of {n_vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Vocabulary entries.
        n_vocab: usize,
    },
    /// A sampling option is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Too many requests wait already.
    #[error("{MAX_WAITING} requests are waiting for a slot; try again later")]
    QueueFull,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It sampled a stop token.
    Stop,
    /// It reached its limit of tokens.
    Length,
    /// Its slot is full.
    ContextFull,
    /// The caller gave it up.
    Cancelled,
}

/// Where the time of a sequence went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of them, tokens that were in the slot already.
    pub n_cached: usize,
    /// Time of the steps that prefilled it.
    pub prefill: Duration,
    /// Tokens generated, the stop token not counted.
    pub n_decoded: usize,
    /// Time of the steps that decoded it.
    pub decode: Duration,
}

impl Timings {
    /// Prompt tokens computed in a second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.n_prompt - self.n_cached, self.prefill)
    }

    /// Tokens generated in a second. The first token comes out of the last
    /// prefill step, so it is not counted.
    pub fn decode_rate(&self) -> f64 {
        rate(self.n_decoded.saturating_sub(1), self.decode)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        n as f64 / time.as_secs_f64()
    }
}

/// What happened to a sequence in a tick.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A part of its prompt was computed.
    Prefill {
        /// The sequence.
        id: SequenceId,
        /// Prompt tokens in the slot now.
        n_done: usize,
        /// Prompt tokens.
        n_total: usize,
        /// Of those done, the ones that did not have to be computed.
        n_cached: usize,
    },
    /// A token was generated.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The token.
        token: u32,
        /// What the model thought of it, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// It ended.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
        /// Where its time went.
        timings: Timings,
    },
}

/// What a sequence found when it got its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Its slot.
    pub slot: usize,
    /// Whether nothing was looked for, as the request asked.
    pub ignored: bool,
    /// The slot that held the most of the prompt; what was cached is a copy when it
    /// is another than `slot`.
    pub from: usize,
    /// Tokens of the prompt that it held, in order from the first.
    pub n_shared: usize,
    /// Of them, tokens that did not have to be computed: a slot can be cut back
    /// only to certain lengths.
    pub n_cached: usize,
    /// Tokens that it held.
    pub n_held: usize,
    /// The first few of those that it held behind the shared ones.
    pub held_next: Vec<u32>,
    /// Tokens that were read from disk; 0 when what the slots held was as good.
    pub n_loaded: usize,
    /// Why the store had no more, if there is one.
    pub not_stored: Option<NotStored>,
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUse {
    /// Tokens in it.
    pub n_tokens: usize,
    /// The sequence that runs in it.
    pub sequence: Option<SequenceId>,
    /// Tokens that sequence has generated.
    pub n_decoded: usize,
}

struct Waiting {
    id: SequenceId,
    request: Request,
    constraint: Constraint,
    /// The sequence whose prompt begins like this one, and the tokens of it that this
    /// one waits for. It runs, and what runs waits for nobody: no request waits for ever.
    awaits: Option<(SequenceId, usize)>,
}

struct Sequence {
    id: SequenceId,
    slot: usize,
    request: Request,
    sampler: Sampler,
    constraint: Constraint,
    reuse: Reuse,
    /// Prompt tokens in the slot, while prefilling.
    n_done: usize,
    /// Tokens chosen or forced and not yet in the slot, while decoding.
    next: Vec<u32>,
    timings: Timings,
}

impl Sequence {
    fn is_prefilling(&self) -> bool {
        self.n_done < self.request.tokens.len()
    }
}

/// An engine and the sequences that run on it.
pub struct Scheduler {
    engine: Engine,
    running: Vec<Sequence>,
    waiting: VecDeque<Waiting>,
    frontiers: Vec<Vec<Frontier>>,
    cancelled: Vec<Event>,
    last_used: Vec<u64>,
    /// For every slot, whether what it holds is its sequence's alone.
    uncached: Vec<bool>,
    next_id: u64,
    store: Option<Store>,
    /// What went wrong with the store, for the log.
    store_errors: Vec<String>,
}

impl Scheduler {
    /// Takes over an engine.
    pub fn new(engine: Engine) -> Scheduler {
        Scheduler {
            frontiers: (0..engine.n_slots()).map(|_| Vec::new()).collect(),
            last_used: vec![0; engine.n_slots()],
            uncached: vec![false; engine.n_slots()],
            engine,
            running: Vec::new(),
            waiting: VecDeque::new(),
            cancelled: Vec::new(),
            next_id: 0,
            store: None,
            store_errors: Vec::new(),
        }
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

    /// What happened to the store that the log should say; each is told once.
    pub fn take_store_notices(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.store_errors);
        if let Some(store) = &self.store {
            lines.extend(store.take_notices().iter().map(|n| format!("{n:?}")));
        }
        lines
    }

    /// Saves every slot and waits until it is written: what a server does before
    /// it ends.
    pub fn save_all(&mut self) {
        for slot in 0..self.engine.n_slots() {
            self.save(slot, Reason::Shutdown);
        }
        if let Some(store) = &self.store {
            store.flush();
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Gives the engine back; running sequences are dropped.
    pub fn into_engine(self) -> Engine {
        self.engine
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
        self.waiting.push_back(Waiting {
            id,
            request,
            constraint: Constraint::default(),
            awaits: None,
        });
        Ok(id)
    }

    /// Ends a sequence; its slot keeps what was computed. The next tick reports
    /// it as finished. Unknown and ended sequences are left alone.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(at) = self.waiting.iter().position(|w| w.id == id) {
            let Waiting { request, .. } = self.waiting.remove(at).expect("just found");
            self.cancelled.push(Event::Finished {
                id,
                reason: FinishReason::Cancelled,
                timings: Timings {
                    n_prompt: request.tokens.len(),
                    ..Timings::default()
                },
            });
        }
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let sequence = self.running.remove(at);
            if sequence.request.use_cache {
                self.save(sequence.slot, Reason::TurnEnd);
            } else {
                self.empty(sequence.slot);
            }
            self.cancelled.push(Event::Finished {
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
        self.running.iter().any(|s| s.id == id) || self.waiting.iter().any(|w| w.id == id)
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
        self.running.clear();
        self.waiting.clear();
        self.cancelled.clear();
        for slot in 0..self.engine.n_slots() {
            self.empty(slot);
        }
    }

    /// Whether nothing runs, waits or is to be reported.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.cancelled.is_empty()
    }

    /// Runs one step and says what it did. When a sequence got its slot, or was
    /// cancelled, that is said first, and nothing is computed. On an error the sequences of the
    /// step are gone, and their slots empty if the error says so; the others go on.
    pub fn tick(&mut self) -> Result<Vec<Event>, StepError> {
        let mut events = std::mem::take(&mut self.cancelled);
        self.admit(&mut events)?;
        if !events.is_empty() {
            return Ok(events);
        }
        let (batch, in_batch) = self.plan();
        if in_batch.is_empty() {
            return Ok(events);
        }
        let started = Instant::now();
        if let Err(error) = self.run(&batch, &in_batch, started, &mut events) {
            let failed: Vec<SequenceId> = in_batch.iter().map(|at| self.running[*at].id).collect();
            self.running.retain(|s| !failed.contains(&s.id));
            for segment in batch.segments() {
                self.frontiers[segment.slot].clear();
            }
            self.empty_uncached();
            return Err(error);
        }
        self.take_frontiers(&batch)?;
        self.save_progress(&batch);
        self.empty_uncached();
        Ok(events)
    }

    /// Empties the idle slots that must not be gone on from.
    fn empty_uncached(&mut self) {
        for slot in 0..self.engine.n_slots() {
            if self.uncached[slot] && self.running.iter().all(|s| s.slot != slot) {
                self.empty(slot);
            }
        }
    }

    fn empty(&mut self, slot: usize) {
        self.engine.clear(slot);
        self.frontiers[slot].clear();
        self.uncached[slot] = false;
    }

    /// Gives idle slots to waiting requests.
    fn admit(&mut self, events: &mut Vec<Event>) -> Result<(), BackendError> {
        while !self.waiting.is_empty() {
            let idle: Vec<usize> = (0..self.engine.n_slots())
                .filter(|slot| self.running.iter().all(|s| s.slot != *slot))
                .collect();
            if idle.is_empty() {
                return Ok(());
            }
            let Some(at) = (0..self.waiting.len()).find(|at| !self.awaits(*at)) else {
                return Ok(());
            };
            let Waiting {
                id,
                request,
                constraint,
                ..
            } = self.waiting.remove(at).expect("just found");
            let reuse = if request.use_cache {
                match self.load(&idle, &request.tokens) {
                    Some(reuse) => reuse,
                    None => match self.copy_running(&idle, &request.tokens)? {
                        Some(reuse) => reuse,
                        None => self.prepare_slot(&idle, &request.tokens)?,
                    },
                }
            } else {
                let slot = self.spare_slot(&idle);
                self.empty(slot);
                Reuse {
                    slot,
                    from: slot,
                    ignored: true,
                    ..Reuse::default()
                }
            };
            let Reuse { slot, n_cached, .. } = reuse;
            self.uncached[slot] = !request.use_cache;
            self.last_used[slot] = id.0 + 1;
            let n_total = request.tokens.len();
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
                n_done: n_cached,
                next: Vec::new(),
                timings: Timings {
                    n_prompt: n_total,
                    n_cached,
                    ..Timings::default()
                },
            });
        }
        Ok(())
    }

    /// Chooses a slot for a prompt and cuts it back to what they share. At least
    /// the prompt's last token is left to compute: its logits are wanted.
    fn prepare_slot(&mut self, idle: &[usize], prompt: &[u32]) -> Result<Reuse, BackendError> {
        let (source, reusable) = idle
            .iter()
            .map(|slot| (*slot, self.reusable(*slot, prompt)))
            .max_by_key(|(slot, reusable)| (*reusable, std::cmp::Reverse(self.last_used[*slot])))
            .expect("an idle slot");
        let loses = reusable < self.engine.len(source);
        let found = self.found(idle, prompt);
        let not_stored = |n_used| {
            let store = self.store.as_ref()?;
            Some(store.not_stored(prompt, n_used))
        };
        let not_stored = not_stored(reusable);
        let reuse = |slot, n_cached| Reuse {
            slot,
            n_cached,
            not_stored,
            ..found
        };
        let empty = idle.iter().copied().find(|s| self.engine.is_empty(*s));
        let slot = match (reusable, empty) {
            (0, _) => {
                let slot = self.spare_slot(idle);
                self.empty(slot);
                return Ok(reuse(slot, 0));
            }
            (_, Some(empty)) if loses && self.rewinds_without_frontier(source, reusable) => {
                self.engine.fork(source, empty);
                self.frontiers[empty].clear();
                empty
            }
            _ => source,
        };
        self.cut(slot, reusable)?;
        Ok(reuse(slot, reusable))
    }

    /// The slot whose tokens share most with a prompt, of these, and what it holds.
    fn found(&self, slots: &[usize], prompt: &[u32]) -> Reuse {
        let shared = slots.iter().map(|slot| (self.shared(*slot, prompt), *slot));
        let (n_shared, from) = shared
            .max_by_key(|(n_shared, slot)| (*n_shared, std::cmp::Reverse(*slot)))
            .expect("a slot");
        let held = self.engine.tokens(from);
        Reuse {
            from,
            n_shared,
            n_held: held.len(),
            held_next: held[n_shared..]
                .iter()
                .copied()
                .take(MAX_HELD_NEXT)
                .collect(),
            ..Reuse::default()
        }
    }

    /// The idle slot that is given up first.
    fn spare_slot(&self, idle: &[usize]) -> usize {
        let empty = idle.iter().find(|slot| self.engine.is_empty(**slot));
        let oldest = || idle.iter().min_by_key(|slot| self.last_used[**slot]);
        *empty.or_else(oldest).expect("an idle slot")
    }

    /// Running slots that others may be copied from.
    fn sources(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter(|s| s.request.use_cache)
    }

    /// Tokens of a prompt that need not be computed in an idle slot.
    fn reusable_of(&self, idle: &[usize], prompt: &[u32]) -> usize {
        let all = idle.iter().map(|slot| self.reusable(*slot, prompt));
        all.max().unwrap_or(0)
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
                let prompt = &request.tokens;
                let slots: Vec<usize> = (0..self.engine.n_slots())
                    .filter(|slot| !self.uncached[*slot])
                    .collect();
                let now = self.reusable_of(&slots, prompt);
                let coming = self.sources().filter(|s| s.is_prefilling());
                coming
                    .map(|s| {
                        (
                            s.id,
                            n_alike(&s.request.tokens, prompt).min(prompt.len() - 1),
                        )
                    })
                    .filter(|(_, n_alike)| *n_alike >= now + MIN_COPY_GAIN)
                    .max_by_key(|(id, n_alike)| (*n_alike, std::cmp::Reverse(*id)))
            }
        };
        self.waiting[at].awaits = source;
        source.is_some_and(|(id, n_awaited)| {
            let mut running = self.running.iter();
            running.any(|s| s.id == id && s.is_prefilling() && s.n_done < n_awaited)
        })
    }

    /// Copies what a running slot shares with a prompt to an idle one, when that is
    /// more than the idle ones have.
    fn copy_running(
        &mut self,
        idle: &[usize],
        prompt: &[u32],
    ) -> Result<Option<Reuse>, BackendError> {
        let sources = self.sources().map(|s| s.slot);
        let best = sources
            .map(|slot| (self.reusable(slot, prompt), slot))
            .max_by_key(|(n_tokens, slot)| (*n_tokens, std::cmp::Reverse(*slot)));
        let Some((n_cached, from)) = best else {
            return Ok(None);
        };
        if n_cached < self.reusable_of(idle, prompt) + MIN_COPY_GAIN {
            return Ok(None);
        }
        let found = self.found(&[from], prompt);
        let slot = self.spare_slot(idle);
        self.frontiers[slot].clear();
        if self.rewinds_without_frontier(from, n_cached) {
            self.engine.fork(from, slot);
            self.cut(slot, n_cached)?;
        } else {
            let kept = self.frontiers[from].iter().find(|f| f.len == n_cached);
            match kept.map(|frontier| self.engine.fork_at(from, frontier, slot)) {
                Some(Ok(())) => {}
                Some(Err(ds4_model::RestoreError::Backend(error))) => return Err(error),
                Some(Err(ds4_model::RestoreError::Rewind(_))) | None => {
                    unreachable!("a length taken from the slot's own frontiers")
                }
            }
        }
        Ok(Some(Reuse {
            slot,
            n_cached,
            ..found
        }))
    }

    /// Reads the longest stored state that a prompt goes on from into an idle slot,
    /// when that is worth it.
    fn load(&mut self, idle: &[usize], prompt: &[u32]) -> Option<Reuse> {
        let store = self.store.as_ref()?;
        let running = self.sources().map(|s| self.reusable(s.slot, prompt));
        let best = running.max().max(Some(self.reusable_of(idle, prompt)))?;
        let found = self.found(idle, prompt);
        let candidates = store.find(prompt, None);
        let loaded = candidates
            .iter()
            .filter(|c| c.n_tokens >= best + MIN_LOAD_GAIN && c.n_tokens < prompt.len())
            // What cannot be read is told in the store's notices.
            .find_map(|c| store.load(c).ok())?;
        let slot = self.spare_slot(idle);
        self.frontiers[slot].clear();
        if let Err(error) = self.engine.import(slot, &loaded.tokens, &loaded.state) {
            self.store_errors
                .push(format!("a stored state cannot be used: {error}"));
            self.engine.clear(slot);
            return None;
        }
        let n_cached = loaded.tokens.len();
        let store = self.store.as_ref()?;
        Some(Reuse {
            slot,
            n_cached,
            n_loaded: n_cached,
            not_stored: Some(store.not_stored(prompt, n_cached)),
            ..found
        })
    }

    /// Saves what a step brought to a place worth coming back to.
    fn save_progress(&mut self, batch: &Batch) {
        if self.store.is_none() {
            return;
        }
        let mut saves: Vec<(usize, Reason)> = Vec::new();
        for segment in batch.segments() {
            let slot = segment.slot;
            if self.uncached[slot] {
                continue;
            }
            let len = self.engine.len(slot);
            let before = len - segment.tokens.len();
            match self.running.iter().find(|s| s.slot == slot) {
                // It ended in this step.
                None => saves.push((slot, Reason::TurnEnd)),
                Some(sequence) if len > sequence.request.tokens.len() => {}
                // The prompt's last tokens say whether to think, and the next prompt may
                // say otherwise: the place to come back to is before them.
                Some(sequence) if len == frontier_mark(sequence.request.tokens.len()) => {
                    saves.push((slot, Reason::TurnEnd));
                }
                Some(_) if len / SAVE_INTERVAL > before / SAVE_INTERVAL => {
                    saves.push((slot, Reason::Interval));
                }
                Some(_) => {}
            }
        }
        for (slot, reason) in saves {
            self.save(slot, reason);
        }
    }

    fn save(&mut self, slot: usize, reason: Reason) {
        let Some(store) = &self.store else {
            return;
        };
        let tokens = self.engine.tokens(slot).to_vec();
        if tokens.is_empty() || self.uncached[slot] {
            return;
        }
        let options = SaveOptions {
            reason,
            text_keys: &[],
            wait: reason == Reason::Shutdown,
        };
        let mut rows = SlotRows {
            engine: &mut self.engine,
            slot,
        };
        if let Err(error) = store.save(&tokens, &mut rows, &options) {
            self.store_errors
                .push(format!("a state could not be saved: {error}"));
        }
    }

    /// Longest prefix of `prompt` that a slot can be cut back to.
    fn reusable(&self, slot: usize, prompt: &[u32]) -> usize {
        let shared = self.shared(slot, prompt).min(prompt.len() - 1);
        if shared == 0 || self.rewinds_without_frontier(slot, shared) {
            return shared;
        }
        self.frontiers[slot]
            .iter()
            .map(|f| f.len)
            .filter(|len| *len <= shared)
            .max()
            .unwrap_or(0)
    }

    /// Tokens that a slot and a prompt begin with alike.
    fn shared(&self, slot: usize, prompt: &[u32]) -> usize {
        n_alike(self.engine.tokens(slot), prompt)
    }

    fn rewinds_without_frontier(&self, slot: usize, len: usize) -> bool {
        len == self.engine.len(slot) || len >= self.engine.rewind_floor(slot)
    }

    /// Cuts a slot back to a length that [`Scheduler::reusable`] gave.
    fn cut(&mut self, slot: usize, len: usize) -> Result<(), BackendError> {
        if self.engine.rewind(slot, len).is_err() {
            let restored = self.frontiers[slot]
                .iter()
                .find(|f| f.len == len)
                .map(|frontier| self.engine.restore(slot, frontier));
            match restored {
                Some(Ok(())) => {}
                Some(Err(ds4_model::RestoreError::Backend(error))) => return Err(error),
                Some(Err(ds4_model::RestoreError::Rewind(_))) | None => {
                    unreachable!("a length taken from the slot's own frontiers")
                }
            }
        }
        self.frontiers[slot].retain(|f| f.len <= len);
        Ok(())
    }

    /// The rows of the next step, and which running sequences they belong to,
    /// in the order of the segments.
    fn plan(&self) -> (Batch, Vec<usize>) {
        let mut batch = Batch::new();
        let mut in_batch = Vec::new();
        let max_rows = self.engine.max_rows();
        for (at, sequence) in self.running.iter().enumerate() {
            let fits = batch.n_rows() + sequence.next.len() <= max_rows;
            if !sequence.is_prefilling() && fits {
                batch.push(sequence.slot, &sequence.next, Outputs::Last);
                in_batch.push(at);
            }
        }
        let chunk = if in_batch.is_empty() {
            max_rows
        } else {
            MIXED_CHUNK
        };
        let mut room = chunk.min(max_rows - batch.n_rows());
        for (at, sequence) in self.running.iter().enumerate() {
            if !sequence.is_prefilling() || room == 0 {
                continue;
            }
            let prompt = &sequence.request.tokens;
            let mut end = prompt.len().min(sequence.n_done + room);
            // A step ends where a frontier will be taken, and where a request that waits
            // for a part of this prompt goes another way.
            let awaited = self.waiting.iter().filter_map(|w| w.awaits);
            let awaited = awaited.filter(|(id, _)| *id == sequence.id);
            let marks = awaited.map(|(_, n_awaited)| n_awaited);
            for mark in marks.chain([frontier_mark(prompt.len())]) {
                if sequence.n_done < mark && mark < end {
                    end = mark;
                }
            }
            let outputs = if end == prompt.len() {
                Outputs::Last
            } else {
                Outputs::None
            };
            batch.push(sequence.slot, &prompt[sequence.n_done..end], outputs);
            in_batch.push(at);
            room -= end - sequence.n_done;
        }
        (batch, in_batch)
    }

    /// Runs a batch and gives every sequence its part.
    fn run(
        &mut self,
        batch: &Batch,
        in_batch: &[usize],
        started: Instant,
        events: &mut Vec<Event>,
    ) -> Result<(), StepError> {
        let n_vocab = self.engine.geometry().n_vocab;
        let context = self.engine.context();
        let logits = self.engine.step(batch)?;
        let elapsed = started.elapsed();
        let mut rows = logits.chunks_exact(n_vocab);
        let mut finished = Vec::new();
        for (at, segment) in in_batch.iter().zip(batch.segments()) {
            let sequence = &mut self.running[*at];
            let id = sequence.id;
            if sequence.is_prefilling() {
                sequence.n_done += segment.tokens.len();
                sequence.timings.prefill += elapsed;
                events.push(Event::Prefill {
                    id,
                    n_done: sequence.n_done,
                    n_total: sequence.request.tokens.len(),
                    n_cached: sequence.timings.n_cached,
                });
            } else {
                sequence.timings.decode += elapsed;
                sequence.next.clear();
            }
            if segment.outputs == Outputs::None {
                continue;
            }
            let row = rows.next().expect("one row of logits for every output");
            let in_slot = sequence.request.tokens.len() + sequence.timings.n_decoded;
            let reason = if sequence.timings.n_decoded >= sequence.request.max_tokens {
                Some(FinishReason::Length)
            } else if in_slot >= context {
                Some(FinishReason::ContextFull)
            } else {
                let token = sequence.sampler.sample_within(row, &sequence.constraint);
                if sequence.request.stop_tokens.contains(&token) {
                    Some(FinishReason::Stop)
                } else {
                    sequence.timings.n_decoded += 1;
                    sequence.next.push(token);
                    let n_logprobs = sequence.request.n_logprobs;
                    events.push(Event::Token {
                        id,
                        token,
                        logprobs: n_logprobs.map(|n| TokenLogprobs::new(row, token, n)),
                    });
                    // The last token allowed need not be computed.
                    (sequence.timings.n_decoded >= sequence.request.max_tokens)
                        .then_some(FinishReason::Length)
                }
            };
            if let Some(reason) = reason {
                finished.push(id);
                events.push(Event::Finished {
                    id,
                    reason,
                    timings: sequence.timings,
                });
            }
        }
        self.running.retain(|s| !finished.contains(&s.id));
        Ok(())
    }

    /// Takes the frontiers that the step just made possible.
    fn take_frontiers(&mut self, batch: &Batch) -> Result<(), BackendError> {
        for segment in batch.segments() {
            let len = self.engine.len(segment.slot);
            let wanted = self.running.iter().any(|s| {
                s.slot == segment.slot
                    && len == frontier_mark(s.request.tokens.len())
                    && len == s.n_done
            });
            let kept = &self.frontiers[segment.slot];
            if wanted && kept.iter().all(|f| f.len != len) {
                let frontier = self.engine.frontier(segment.slot)?;
                let kept = &mut self.frontiers[segment.slot];
                if kept.len() == MAX_FRONTIERS {
                    kept.remove(0);
                }
                kept.push(frontier);
            }
        }
        Ok(())
    }
}

/// Tokens that two lists begin with alike.
fn n_alike(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Where a prompt of this length leaves a frontier: the last multiple of
/// [`FRONTIER_STRIDE`] that leaves at least the generation prompt, two tokens,
/// to compute. 0 when there is none.
fn frontier_mark(n_prompt: usize) -> usize {
    n_prompt.saturating_sub(2) / FRONTIER_STRIDE * FRONTIER_STRIDE
}
