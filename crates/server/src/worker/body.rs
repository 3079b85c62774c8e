//! The thread itself.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, PoisonError, mpsc};
use std::time::Instant;

use ds4_engine::{Constraint, Event, FinishReason, Request, RequestError, SequenceId, StepError};
use ds4_text::Tokenizer;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::source::TokenSource;
use super::{Command, Job, Pending, Shared, SlotRequest, SlotView, WorkerOptions, internal, lost};
use crate::bookkeeper::Bookkeeper;
use crate::generation::{Failure, FailureKind, ReplyEvent, Usage};
use crate::log::rate;
use crate::reply::{ReplyInProgress, Step, stop_tokens};
use crate::story;
use crate::trace;
use crate::turns::Turns;

/// Bugs in a row, without a step between them, after which the thread gives up.
const MAX_BUGS: u32 = 8;

/// Says that the thread has ended, however it ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
    }
}

pub(super) struct Running {
    pub(super) number: u64,
    pub(super) job: Job,
    pub(super) events: UnboundedSender<ReplyEvent>,
    pub(super) reply: ReplyInProgress,
    pub(super) constraint: Constraint,
    /// What the reply begins with, until it has a slot.
    pub(super) opening: Vec<ReplyEvent>,
    pub(super) submitted: Instant,
    pub(super) started: Option<Started>,
    pub(super) first_token: Option<Instant>,
    /// What held for its tokens, for the trace.
    pub(super) constraints: Vec<Value>,
}

pub(super) struct Started {
    pub(super) at: Instant,
    pub(super) slot: Option<usize>,
    pub(super) n_cached: usize,
    /// Prompt tokens in the slot by now.
    pub(super) n_done: usize,
    pub(super) source: &'static str,
    pub(super) why: String,
}

pub(super) struct Body<S> {
    pub(super) source: S,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) turns: Arc<Turns>,
    pub(super) books: Arc<Bookkeeper>,
    pub(super) options: WorkerOptions,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) running: HashMap<SequenceId, Running>,
    /// For every slot, its last request that ended.
    pub(super) last: Vec<Option<SlotRequest>>,
    pub(super) deadline: Option<Instant>,
    /// What every request fails with, once the device is lost.
    pub(super) lost: Option<Failure>,
}

impl<S: TokenSource> Body<S> {
    pub(super) fn run(&mut self) {
        let _ended = Ended(Arc::clone(&self.shared));
        let mut n_steps = 0;
        let mut n_bugs = 0;
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.books
                .note("the engine's thread failed by a bug; what ran is lost");
            let failure = internal("the engine failed by a bug; the request is lost");
            let is_reset = catch_unwind(AssertUnwindSafe(|| {
                self.source.reset();
                self.fail_all(&failure);
            }));
            // Only steps say that it can go on.
            let steps = self.shared.counters.n_steps.load(Ordering::Relaxed);
            n_bugs = if steps > n_steps { 1 } else { n_bugs + 1 };
            n_steps = steps;
            if n_bugs == MAX_BUGS || is_reset.is_err() {
                self.books
                    .note("the engine has stopped: restart the program");
                return;
            }
        }
        // A state that cannot be kept is computed again; that must not keep the program from
        // ending.
        let _ = catch_unwind(AssertUnwindSafe(|| self.source.save_all()));
        self.tell_notices();
    }

    fn serve(&mut self) {
        loop {
            if self.source.is_idle() {
                if self.deadline.is_some() {
                    return;
                }
                let saved = catch_unwind(AssertUnwindSafe(|| self.source.save_idle()));
                if saved.is_err() {
                    self.books.note("states could not be saved, by a bug");
                }
                self.tell_notices();
                let received = match saved.unwrap_or(None) {
                    None => self.inbox.recv().map_err(RecvTimeoutError::from),
                    Some(due) => self.inbox.recv_timeout(due),
                };
                match received {
                    Ok(command) => self.try_to_obey(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.try_to_obey(command);
            }
            if self.deadline.is_some_and(|at| Instant::now() >= at) {
                self.give_up_all();
                return;
            }
            if !self.source.is_idle() {
                self.step();
                self.publish();
                self.tell_notices();
            }
        }
    }

    fn tell_notices(&mut self) {
        let taken = catch_unwind(AssertUnwindSafe(|| self.source.take_notices()));
        for notice in taken.unwrap_or_default() {
            self.books.note(notice);
        }
    }

    fn try_to_obey(&mut self, command: Command) {
        // Whoever waits for a reply that was not begun learns that nobody makes it.
        if catch_unwind(AssertUnwindSafe(|| self.obey(command))).is_err() {
            self.books
                .note("a request could not be begun or ended, by a bug");
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run(pending) => self.begin(*pending),
            Command::Cancel(number) => {
                let id = self.running.iter().find(|(_, r)| r.number == number);
                if let Some(id) = id.map(|(id, _)| *id) {
                    self.source.cancel(id);
                    self.end(id, Some(FinishReason::Cancelled));
                }
            }
            Command::EndReasoning(number) => {
                let mut running = self.running.iter_mut();
                let found = running.find(|(_, r)| r.number == number);
                if let Some((&id, running)) = found {
                    let step = running.reply.end_reasoning();
                    self.follow(id, step);
                }
            }
            Command::Shutdown { deadline } => self.deadline = Some(deadline),
        }
    }

    fn begin(&mut self, pending: Pending) {
        let Pending {
            number,
            mut job,
            events,
            submitted,
        } = pending;
        if let Some(failure) = &self.lost {
            return self.refuse(&job, &events, failure.clone());
        }
        let mut reply = ReplyInProgress::new(
            Arc::clone(&job.generation),
            Arc::clone(&self.tokenizer),
            job.prompt.clone(),
            job.schema.take(),
            job.calls.take(),
        );
        let opening = reply.opening();
        let mut tokens = job.prompt.tokens.clone();
        tokens.extend_from_slice(&opening.force);
        let stop_tokens = if job.generation.ignore_eos {
            Vec::new()
        } else {
            stop_tokens(&self.tokenizer)
        };
        let request = Request {
            tokens,
            sampling: job.generation.sampling.clone(),
            max_tokens: job
                .generation
                .max_tokens
                .unwrap_or(self.options.default_max_tokens),
            stop_tokens,
            n_logprobs: job.generation.n_top_logprobs,
            scored_from: None,
            use_cache: job.generation.use_cache,
            anchors: job.prompt.anchors.clone(),
            last_user: job.prompt.last_user,
            affinity: job.generation.affinity.as_deref().map(affinity),
        };
        let id = match self.source.submit(request) {
            Ok(id) => id,
            Err(error) => {
                let failure = Failure {
                    kind: match error {
                        RequestError::QueueFull => FailureKind::Overloaded,
                        RequestError::PromptTooLong { found, context } => {
                            FailureKind::ContextOverflow {
                                n_prompt: found,
                                n_context: context,
                            }
                        }
                        _ => FailureKind::Invalid,
                    },
                    message: error.to_string(),
                    param: None,
                };
                // Whoever asked may be gone.
                let _ = events.send(ReplyEvent::Failed(failure));
                return;
            }
        };
        let constraint = match reply.constraint() {
            Ok(constraint) => constraint,
            Err(failure) => {
                self.source.cancel(id);
                return self.refuse(&job, &events, failure);
            }
        };
        let mut constraints = Vec::new();
        if constraint != Constraint::default() {
            self.source.constrain(id, constraint.clone());
            if self.options.trace.is_some() {
                constraints.push(trace::constraint(0, &constraint));
            }
        }
        let running = Running {
            number,
            job,
            events,
            reply,
            constraint,
            opening: opening.events,
            submitted,
            started: None,
            first_token: None,
            constraints,
        };
        self.running.insert(id, running);
    }

    fn step(&mut self) {
        let began = Instant::now();
        self.shared.set_step(Some(began));
        let ticked = catch_unwind(AssertUnwindSafe(|| self.source.tick()));
        self.shared.set_step(None);
        match ticked {
            Ok(Ok(events)) => {
                for event in events {
                    let (Event::Prefill { id, .. }
                    | Event::Token { id, .. }
                    | Event::Finished { id, .. }) = event;
                    let done = catch_unwind(AssertUnwindSafe(|| self.dispatch(event, began)));
                    if done.is_err() {
                        self.source.cancel(id);
                        self.fail(id, internal("reading the reply failed by a bug"));
                    }
                }
            }
            Ok(Err(error)) if error.is_lost() => self.lose_device(&error),
            Ok(Err(error)) => {
                let lost: Vec<SequenceId> = self
                    .running
                    .keys()
                    .copied()
                    .filter(|id| !self.source.contains(*id))
                    .collect();
                for id in lost {
                    self.fail(id, internal(format!("the engine failed: {error}")));
                }
            }
            Err(_) => {
                self.source.reset();
                self.fail_all(&internal("the engine failed by a bug; the request is lost"));
            }
        }
        self.shared.counters.n_steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends all replies, now and later: nothing can be computed any more. What is on disk stays as it
    /// is, and the thread goes on to say so.
    fn lose_device(&mut self, error: &StepError) {
        let failure = lost();
        self.shared.is_lost.store(true, Ordering::Release);
        self.lost = Some(failure.clone());
        self.books.note(format!("{error}; restart the program"));
        // What the slots held was on the device; forgetting it needs no device.
        self.source.reset();
        self.fail_all(&failure);
    }

    /// Passes on what a step that began then did.
    fn dispatch(&mut self, event: Event, began: Instant) {
        match event {
            Event::Prefill {
                id,
                n_done,
                n_cached,
                ..
            } => {
                let reuse = self.source.reuse(id);
                let Some(running) = self.running.get_mut(&id) else {
                    return;
                };
                // Tokens that open a call are part of the reply, not of the prompt.
                let n_prompt = running.job.prompt.tokens.len();
                let n_cached = n_cached.min(n_prompt);
                if running.started.is_none() {
                    let source = story::source(n_cached, reuse.as_ref());
                    let prompt = &running.job.prompt;
                    let why = reuse.as_ref().map_or_else(String::new, |reuse| {
                        story::why(prompt, &self.tokenizer, n_cached, reuse)
                    });
                    running.started = Some(Started {
                        at: began.max(running.submitted),
                        slot: reuse.as_ref().map(|reuse| reuse.slot),
                        n_cached,
                        n_done: n_done.min(n_prompt),
                        source,
                        why: why.clone(),
                    });
                    running.send(vec![ReplyEvent::Started {
                        n_prompt,
                        n_cached,
                        source,
                        why,
                    }]);
                    let opening = std::mem::take(&mut running.opening);
                    running.send(opening);
                } else {
                    let n_done = n_done.min(n_prompt);
                    if let Some(started) = &mut running.started {
                        started.n_done = n_done;
                    }
                    running.send(vec![ReplyEvent::Progress { n_done, n_prompt }]);
                }
            }
            Event::Token {
                id,
                token,
                logprobs,
            } => {
                let Some(running) = self.running.get_mut(&id) else {
                    return;
                };
                running.first_token.get_or_insert_with(Instant::now);
                let step = running.reply.push(token, logprobs);
                self.follow(id, step);
            }
            Event::Finished { id, reason, .. } => self.end(id, Some(reason)),
        }
    }

    /// Does what follows from a token.
    fn follow(&mut self, id: SequenceId, step: Step) {
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        running.send(step.events);
        if step.ends {
            self.source.cancel(id);
            self.end(id, None);
            return;
        }
        if !step.force.is_empty() {
            self.source.force(id, &step.force);
        }
        let constraint = match running.reply.constraint() {
            Ok(constraint) => constraint,
            Err(failure) => {
                self.source.cancel(id);
                return self.fail(id, failure);
            }
        };
        if constraint != running.constraint {
            if self.options.trace.is_some() {
                let n_generated = running.reply.tokens().len();
                let line = trace::constraint(n_generated, &constraint);
                running.constraints.push(line);
            }
            running.constraint = constraint.clone();
            self.source.constrain(id, constraint);
        }
    }

    /// Shows outside what the slots do: after every step, and before the end of a reply is told.
    pub(super) fn publish(&self) {
        let n_started = self.running.values().filter(|r| r.started.is_some());
        let n_started = n_started.count();
        self.shared.running.store(n_started, Ordering::Release);
        let views = self
            .source
            .slots()
            .into_iter()
            .enumerate()
            .map(|(slot, used)| {
                let running = used.sequence.and_then(|id| self.running.get(&id));
                SlotView {
                    n_tokens: used.n_tokens,
                    request_id: running.map(|r| r.job.request_id.clone()),
                    n_decoded: used.n_decoded,
                    last: match running {
                        Some(running) => Some(running.view()),
                        None => self.last.get(slot).cloned().flatten(),
                    },
                }
            })
            .collect();
        *self
            .shared
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = views;
    }
}

impl Running {
    /// Tokens of its prompt that were computed for it.
    pub(super) fn n_prefilled(&self) -> usize {
        let started = self.started.as_ref();
        started.map_or(0, |s| s.n_done.saturating_sub(s.n_cached))
    }

    /// What is known of it by now.
    pub(super) fn view(&self) -> SlotRequest {
        let now = Instant::now();
        let n_prompt = self.job.prompt.tokens.len();
        let started = self.started.as_ref();
        let n_cached = started.map_or(0, |s| s.n_cached);
        let usage = Usage {
            n_prompt,
            n_cached,
            n_generated: self.reply.tokens().len(),
            n_reasoning: self.reply.n_reasoning(),
        };
        let prefill = started.zip(self.first_token).map(|(s, first)| first - s.at);
        let decode = self.first_token.map(|first| now - first);
        SlotRequest {
            request_id: self.job.request_id.clone(),
            endpoint: self.job.generation.endpoint,
            client: self.job.client.clone(),
            usage,
            source: started.map_or("none", |s| s.source),
            why: started.map_or_else(String::new, |s| s.why.clone()),
            prefill_rate: prefill.and_then(|time| rate(self.n_prefilled(), time)),
            decode_rate: decode.and_then(|time| rate(usage.n_generated.saturating_sub(1), time)),
            finish: None,
        }
    }

    fn send(&self, events: Vec<ReplyEvent>) {
        for event in events {
            // Whoever asked may be gone; its ticket says so in a moment.
            let _ = self.events.send(event);
        }
    }
}

/// The scheduler's name for a client's key.
fn affinity(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
