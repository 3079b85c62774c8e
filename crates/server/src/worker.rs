//! The one thread that owns the engine.
//!
//! It takes jobs, lets the scheduler run step after step, turns tokens into events, and between
//! two steps does what it was told meanwhile: cancel, end the reasoning, shut down. A panic in one
//! reply ends that reply; one in the engine ends the replies that ran and empties the slots.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ds4_engine::store::{NotStored, Store, StoreCounts, StoreMeter, StoreUsage};
use ds4_engine::{
    Constraint, Event, FinishReason, Request, RequestError, Reuse, Scheduler, SequenceId, SlotUse,
    StepError,
};
use ds4_text::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::generation::{
    Failure, FailureKind, Finish, Generation, Outcome, ReplyEvent, Timings, Usage,
};
use crate::log::{Ending, RequestLine};
use crate::prompt::TokenPrompt;
use crate::reply::{ReplyInProgress, Step, stop_tokens};
use crate::schema::SchemaReader;
use crate::turns::Turns;

/// Where tokens come from: the scheduler, or a script in tests.
pub trait TokenSource: Send {
    /// Accepts a request.
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError>;
    /// Says what a sequence may say next.
    fn constrain(&mut self, id: SequenceId, constraint: Constraint);
    /// Puts tokens behind the last one reported.
    fn force(&mut self, id: SequenceId, tokens: &[u32]);
    /// Ends a sequence.
    fn cancel(&mut self, id: SequenceId);
    /// Whether a sequence waits or runs.
    fn contains(&self, id: SequenceId) -> bool;
    /// What a running sequence found in its slot.
    fn reuse(&self, id: SequenceId) -> Option<Reuse>;
    /// What the slots are doing.
    fn slots(&self) -> Vec<SlotUse>;
    /// Whether there is nothing to do.
    fn is_idle(&self) -> bool;
    /// One step.
    fn tick(&mut self) -> Result<Vec<Event>, StepError>;
    /// Drops all sequences and what the slots hold.
    fn reset(&mut self);
    /// What the log should say; each is told once.
    fn take_notices(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// Keeps what the slots hold, before the program ends.
    fn save_all(&mut self) {}
    /// What says how the store of states fares, if there is one.
    fn store_meter(&self) -> Option<StoreMeter> {
        None
    }
}

impl TokenSource for Scheduler {
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        Scheduler::submit(self, request)
    }
    fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        Scheduler::constrain(self, id, constraint);
    }
    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        Scheduler::force(self, id, tokens);
    }
    fn cancel(&mut self, id: SequenceId) {
        Scheduler::cancel(self, id);
    }
    fn contains(&self, id: SequenceId) -> bool {
        Scheduler::contains(self, id)
    }
    fn reuse(&self, id: SequenceId) -> Option<Reuse> {
        Scheduler::reuse(self, id)
    }
    fn slots(&self) -> Vec<SlotUse> {
        Scheduler::slots(self)
    }
    fn is_idle(&self) -> bool {
        Scheduler::is_idle(self)
    }
    fn tick(&mut self) -> Result<Vec<Event>, StepError> {
        Scheduler::tick(self)
    }
    fn reset(&mut self) {
        Scheduler::reset(self);
    }
    fn take_notices(&mut self) -> Vec<String> {
        self.take_store_notices()
    }
    fn save_all(&mut self) {
        Scheduler::save_all(self);
    }
    fn store_meter(&self) -> Option<StoreMeter> {
        self.store().map(Store::meter)
    }
}

/// How a worker works.
#[derive(Clone)]
pub struct WorkerOptions {
    /// Replies that can be in the making at once.
    pub n_slots: usize,
    /// Requests that can wait beside them.
    pub max_queue: usize,
    /// Tokens of a reply when its request says nothing.
    pub default_max_tokens: usize,
    /// Reads the one line that every request leaves.
    pub log: Arc<dyn Fn(&RequestLine) + Send + Sync>,
    /// Reads what else is worth knowing.
    pub note: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A request that is ready to run.
pub struct Job {
    /// Id of the request.
    pub request_id: String,
    /// What is wanted.
    pub generation: Arc<Generation>,
    /// The prompt.
    pub prompt: TokenPrompt,
    /// What the content must follow.
    pub schema: Option<SchemaReader>,
}

/// What a slot does, for whoever looks from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Tokens in it.
    pub n_tokens: usize,
    /// The request that runs in it.
    pub request_id: Option<String>,
    /// Tokens that this request has generated.
    pub n_decoded: usize,
    /// Why the request that ran last had to compute what it computed.
    pub story: String,
}

/// Numbers that only grow, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Steps of the engine.
    pub n_steps: AtomicU64,
    /// Replies that panicked or lost their step.
    pub n_failed: AtomicU64,
    /// Replies whose client went away.
    pub n_cancelled: AtomicU64,
}

#[derive(Default)]
struct Shared {
    /// Ids of the requests that run or wait.
    requests: Mutex<Vec<String>>,
    in_flight: AtomicUsize,
    running: AtomicUsize,
    stopping: AtomicBool,
    slots: Mutex<Vec<SlotView>>,
    counters: Counters,
    store: Option<StoreMeter>,
}

enum Command {
    Run(Box<Pending>),
    Cancel(u64),
    EndReasoning(String),
    CancelRequest(String),
    Shutdown { deadline: Instant },
}

struct Pending {
    number: u64,
    job: Job,
    events: UnboundedSender<ReplyEvent>,
    submitted: Instant,
}

/// The handle on the worker thread.
pub struct Worker {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    options: WorkerOptions,
    next_number: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A job that was accepted. Dropping it cancels the job, if it is not over.
pub struct Ticket {
    number: u64,
    request_id: String,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let requests = self.shared.requests.lock();
        let mut requests = requests.unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = requests.iter().position(|id| *id == self.request_id) {
            requests.swap_remove(at);
        }
        drop(requests);
        self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
        // A worker that is gone has nothing left to cancel.
        let _ = self.commands.send(Command::Cancel(self.number));
    }
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        source: impl TokenSource + 'static,
        tokenizer: Arc<Tokenizer>,
        turns: Arc<Mutex<Turns>>,
        options: WorkerOptions,
    ) -> std::io::Result<Worker> {
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            store: source.store_meter(),
            ..Shared::default()
        });
        let mut body = Body {
            source,
            tokenizer,
            turns,
            options: options.clone(),
            inbox,
            shared: Arc::clone(&shared),
            running: HashMap::new(),
            stories: Vec::new(),
            deadline: None,
        };
        body.publish();
        let thread = std::thread::Builder::new()
            .name("ds4-engine".to_owned())
            .spawn(move || body.run())?;
        Ok(Worker {
            commands,
            shared,
            options,
            next_number: AtomicU64::new(0),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Accepts a job, if not too many wait.
    ///
    /// # Errors
    /// The queue is full, or the server is shutting down.
    pub fn submit(&self, job: Job) -> Result<(UnboundedReceiver<ReplyEvent>, Ticket), Failure> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(shutting_down());
        }
        let limit = self.options.n_slots + self.options.max_queue;
        let admitted =
            self.shared
                .in_flight
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                    (n < limit).then_some(n + 1)
                });
        if admitted.is_err() {
            return Err(Failure {
                kind: FailureKind::Overloaded,
                message: format!(
                    "{} requests are running and {} are waiting, which is the limit of \
                     --max-queue; try again later",
                    self.options.n_slots, self.options.max_queue
                ),
                param: None,
            });
        }
        let (events, receiver) = unbounded_channel();
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket {
            number,
            request_id: job.request_id.clone(),
            commands: self.commands.clone(),
            shared: Arc::clone(&self.shared),
        };
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(job.request_id.clone());
        let pending = Pending {
            number,
            job,
            events,
            submitted: Instant::now(),
        };
        if self.commands.send(Command::Run(Box::new(pending))).is_err() {
            return Err(shutting_down());
        }
        Ok((receiver, ticket))
    }

    /// Ends the reasoning of a running request. Unknown ids are left alone.
    pub fn end_reasoning(&self, request_id: &str) {
        let _ = self
            .commands
            .send(Command::EndReasoning(request_id.to_owned()));
    }

    /// Ends a request; whether one of this id ran or waited.
    pub fn cancel(&self, request_id: &str) -> bool {
        let requests = self.shared.requests.lock();
        let requests = requests.unwrap_or_else(PoisonError::into_inner);
        let found = requests.iter().any(|id| id == request_id);
        let command = Command::CancelRequest(request_id.to_owned());
        found && self.commands.send(command).is_ok()
    }

    /// Requests that run, and that wait.
    pub fn load(&self) -> (usize, usize) {
        let running = self.shared.running.load(Ordering::Acquire);
        let in_flight = self.shared.in_flight.load(Ordering::Acquire);
        (running, in_flight.saturating_sub(running))
    }

    /// What the slots were doing after the last step.
    pub fn slots(&self) -> Vec<SlotView> {
        let slots = self.shared.slots.lock();
        slots.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Numbers for the metrics.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// How the store of states fares; `None` without one.
    pub fn store(&self) -> Option<(StoreCounts, StoreUsage)> {
        self.shared.store.as_ref()?.read()
    }

    /// Takes no more jobs; those that run may finish until `grace` is over.
    pub fn shut_down(&self, grace: Duration) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Shutdown {
            deadline: Instant::now() + grace,
        });
    }

    /// Waits for the thread after [`Worker::shut_down`].
    pub fn join(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // Its panics are caught inside; there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

fn shutting_down() -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: "the server is shutting down".to_owned(),
        param: None,
    }
}

fn internal(message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Internal,
        message: message.into(),
        param: None,
    }
}

struct Running {
    number: u64,
    job: Job,
    events: UnboundedSender<ReplyEvent>,
    reply: ReplyInProgress,
    constraint: Constraint,
    /// What the reply begins with, until it has a slot.
    opening: Vec<ReplyEvent>,
    submitted: Instant,
    started: Option<Started>,
    first_token: Option<Instant>,
}

struct Started {
    at: Instant,
    n_cached: usize,
    source: &'static str,
    story: String,
}

struct Body<S> {
    source: S,
    tokenizer: Arc<Tokenizer>,
    turns: Arc<Mutex<Turns>>,
    options: WorkerOptions,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    running: HashMap<SequenceId, Running>,
    /// For every slot, why its last request computed what it computed.
    stories: Vec<String>,
    deadline: Option<Instant>,
}

impl<S: TokenSource> Body<S> {
    fn run(&mut self) {
        self.serve();
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
                match self.inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(mpsc::RecvError) => return,
                }
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command);
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
        let mut notices = self.source.take_notices();
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        notices.extend(turns.take_problems());
        drop(turns);
        for notice in notices {
            (self.options.note)(&notice);
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
                    self.publish();
                }
            }
            Command::CancelRequest(request_id) => {
                let mut all = self.running.iter();
                let found = all.find(|(_, r)| r.job.request_id == request_id);
                if let Some(id) = found.map(|(id, _)| *id) {
                    self.source.cancel(id);
                    self.end(id, Some(FinishReason::Cancelled));
                    self.publish();
                }
            }
            Command::EndReasoning(request_id) => {
                let mut running = self.running.iter_mut();
                let found = running.find(|(_, r)| r.job.request_id == request_id);
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
        let mut reply = ReplyInProgress::new(
            Arc::clone(&job.generation),
            Arc::clone(&self.tokenizer),
            job.prompt.clone(),
            job.schema.take(),
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
        };
        let id = match self.source.submit(request) {
            Ok(id) => id,
            Err(error) => {
                let failure = Failure {
                    kind: match error {
                        RequestError::QueueFull => FailureKind::Overloaded,
                        RequestError::PromptTooLong { .. } => FailureKind::ContextOverflow,
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
        let constraint = reply.constraint();
        if constraint != Constraint::default() {
            self.source.constrain(id, constraint.clone());
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
        };
        self.running.insert(id, running);
    }

    fn step(&mut self) {
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| self.source.tick())) {
            Ok(Ok(events)) => {
                for event in events {
                    self.dispatch(event, began);
                }
            }
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
                let all: Vec<SequenceId> = self.running.keys().copied().collect();
                for id in all {
                    self.fail(
                        id,
                        internal("the engine failed by a bug; the request is lost"),
                    );
                }
            }
        }
        self.shared.counters.n_steps.fetch_add(1, Ordering::Relaxed);
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
                    let story = story(n_prompt, n_cached, reuse, &running.job.prompt);
                    if let Some(reuse) = reuse {
                        let n_slots = self.stories.len().max(reuse.slot + 1);
                        self.stories.resize(n_slots, String::new());
                        self.stories[reuse.slot].clone_from(&story);
                    }
                    running.started = Some(Started {
                        at: began.max(running.submitted),
                        n_cached,
                        source: match reuse {
                            Some(reuse) if reuse.n_loaded > 0 => "disk",
                            _ if n_cached > 0 => "memory",
                            _ => "none",
                        },
                        story,
                    });
                    running.send(vec![ReplyEvent::Started { n_prompt, n_cached }]);
                    let opening = std::mem::take(&mut running.opening);
                    running.send(opening);
                } else {
                    let n_done = n_done.min(n_prompt);
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
                let reply = &mut running.reply;
                match catch_unwind(AssertUnwindSafe(|| reply.push(token, logprobs))) {
                    Ok(step) => self.follow(id, step),
                    Err(_) => {
                        self.source.cancel(id);
                        self.fail(id, internal("reading the reply failed by a bug"));
                    }
                }
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
        let constraint = running.reply.constraint();
        if constraint != running.constraint {
            running.constraint = constraint.clone();
            self.source.constrain(id, constraint);
        }
    }

    /// Finishes a reply: for the source's reason, or because it ended itself.
    fn end(&mut self, id: SequenceId, reason: Option<FinishReason>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        let Running {
            job,
            events,
            reply,
            submitted,
            started,
            first_token,
            ..
        } = running;
        let reason = reason.unwrap_or(FinishReason::Stop);
        let Ok(ended) = catch_unwind(AssertUnwindSafe(|| reply.finish(reason))) else {
            let failure = internal("finishing the reply failed by a bug");
            self.lose(&job, &events, failure);
            return;
        };
        let now = Instant::now();
        let started_at = started.as_ref().map_or(now, |s| s.at);
        let first_token = first_token.unwrap_or(now);
        let n_cached = started.as_ref().map_or(0, |s| s.n_cached);
        let usage = Usage {
            n_prompt: job.prompt.tokens.len(),
            n_cached,
            n_generated: ended.n_generated,
            n_reasoning: ended.n_reasoning,
        };
        let timings = Timings {
            queue: started_at - submitted,
            prefill: first_token - started_at,
            decode: now - first_token,
            cache_source: started.as_ref().map_or("none", |s| s.source),
            cache_miss: started.map_or_else(String::new, |s| s.story),
        };
        if let Some(turn) = ended.turn {
            self.turns
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(turn);
        }
        let mut all = ended.events;
        let ending = match ended.finish {
            Ok(finish) => {
                if finish == Finish::Cancelled {
                    let counter = &self.shared.counters.n_cancelled;
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                let ending = Ending::Finished(finish.clone());
                all.push(ReplyEvent::Finished(Box::new(Outcome {
                    finish,
                    reasoning: ended.reasoning,
                    content: ended.content,
                    calls: ended.calls,
                    usage,
                    timings: timings.clone(),
                })));
                ending
            }
            Err(failure) => {
                let counter = &self.shared.counters.n_failed;
                counter.fetch_add(1, Ordering::Relaxed);
                all.push(ReplyEvent::Failed(failure.clone()));
                Ending::Failed(failure)
            }
        };
        (self.options.log)(&RequestLine {
            request_id: &job.request_id,
            endpoint: job.generation.endpoint,
            usage,
            timings: &timings,
            n_replayed: job.prompt.n_replayed,
            n_rendered: job.prompt.n_rendered,
            ending,
        });
        for event in all {
            // Whoever asked may be gone.
            let _ = events.send(event);
        }
    }

    fn fail(&mut self, id: SequenceId, failure: Failure) {
        if let Some(running) = self.running.remove(&id) {
            self.lose(&running.job, &running.events, failure);
        }
    }

    fn lose(&self, job: &Job, events: &UnboundedSender<ReplyEvent>, failure: Failure) {
        self.shared
            .counters
            .n_failed
            .fetch_add(1, Ordering::Relaxed);
        (self.options.log)(&RequestLine {
            request_id: &job.request_id,
            endpoint: job.generation.endpoint,
            usage: Usage {
                n_prompt: job.prompt.tokens.len(),
                ..Usage::default()
            },
            timings: &Timings::default(),
            n_replayed: job.prompt.n_replayed,
            n_rendered: job.prompt.n_rendered,
            ending: Ending::Failed(failure.clone()),
        });
        // Whoever asked may be gone.
        let _ = events.send(ReplyEvent::Failed(failure));
    }

    fn give_up_all(&mut self) {
        let all: Vec<SequenceId> = self.running.keys().copied().collect();
        for id in all {
            self.source.cancel(id);
            self.fail(id, shutting_down());
        }
    }

    /// Shows outside what the slots do.
    fn publish(&mut self) {
        let n_started = self.running.values().filter(|r| r.started.is_some());
        let n_started = n_started.count();
        self.shared.running.store(n_started, Ordering::Release);
        let views = self
            .source
            .slots()
            .into_iter()
            .enumerate()
            .map(|(slot, used)| SlotView {
                n_tokens: used.n_tokens,
                request_id: used
                    .sequence
                    .and_then(|id| self.running.get(&id))
                    .map(|r| r.job.request_id.clone()),
                n_decoded: used.n_decoded,
                story: self.stories.get(slot).cloned().unwrap_or_default(),
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
    fn send(&self, events: Vec<ReplyEvent>) {
        for event in events {
            // Whoever asked may be gone; its ticket says so in a moment.
            let _ = self.events.send(event);
        }
    }
}

/// Why the part of a prompt that was not cached had to be computed.
fn story(n_prompt: usize, n_cached: usize, reuse: Option<Reuse>, prompt: &TokenPrompt) -> String {
    let Some(reuse) = reuse else {
        return String::new();
    };
    let n_new = n_prompt - n_cached;
    let from_text = match prompt.n_rendered {
        0 => String::new(),
        n => format!("; {n} assistant message(s) are not turns that this server remembers"),
    };
    let on_disk = match reuse.not_stored {
        None => String::new(),
        Some(NotStored::NoPoint { n_same: 0 }) => "; the disk has nothing like it".to_owned(),
        Some(NotStored::NoPoint { n_same }) => format!(
            "; the disk has {n_same} of its tokens, and no state between there and token {n_cached}"
        ),
        Some(NotStored::Evicted { n_tokens }) => {
            format!("; its state on disk up to token {n_tokens} gave way to others")
        }
        Some(NotStored::OtherModel) => "; the disk has states of another model only".to_owned(),
        Some(NotStored::FirstDifference { at }) => {
            format!("; what is on disk differs at token {at}")
        }
    };
    if reuse.n_loaded > 0 {
        format!("{n_new} new: the prompt goes on from disk{on_disk}{from_text}")
    } else if reuse.n_held == 0 {
        format!("{n_new} new: the idle slots are empty{on_disk}")
    } else if reuse.n_shared == 0 {
        format!("{n_new} new: no idle slot begins like this prompt{on_disk}")
    } else if reuse.n_shared < reuse.n_held && reuse.n_shared < n_prompt {
        let back = match reuse.n_shared - n_cached.min(reuse.n_shared) {
            0 => String::new(),
            n => format!(", and the slot goes back by {n} more to where its state was kept"),
        };
        format!(
            "{n_new} new: the prompt departs from the slot at token {} of {}{back}{on_disk}{from_text}",
            reuse.n_shared, reuse.n_held
        )
    } else if n_cached < reuse.n_shared.min(n_prompt - 1) {
        format!(
            "{n_new} new: the slot goes back from token {} to {n_cached}, where its state was kept",
            reuse.n_shared
        )
    } else {
        format!("{n_new} new: the prompt goes on where the slot ends")
    }
}
