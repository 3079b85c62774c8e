//! The one thread that owns the engine.
//!
//! It takes jobs, lets the scheduler run step after step, turns tokens into events, and between
//! two steps does what it was told meanwhile: cancel, end the reasoning, shut down. A panic in one
//! reply ends that reply; one in the engine ends the replies that ran and empties the slots.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ds4_engine::store::{Store, StoreCounts, StoreMeter, StoreUsage};
use ds4_engine::{
    Constraint, Event, FinishReason, Request, RequestError, Reuse, Scheduler, SequenceId, SlotUse,
    StepError,
};
use ds4_text::Tokenizer;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::calls::CallReader;
use crate::generation::{
    Endpoint, Failure, FailureKind, Finish, Generation, Outcome, ReplyEvent, Timings, Usage,
};
use crate::log::{Client, Ending, RequestLine, finish_name, rate};
use crate::prompt::TokenPrompt;
use crate::reply::{ReplyInProgress, Step, stop_tokens};
use crate::schema::SchemaReader;
use crate::story;
use crate::trace::{self, Trace};
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
    /// Keeps what idle slots hold when it is time, and says when it will be again.
    fn save_idle(&mut self) -> Option<Duration> {
        None
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
    fn save_idle(&mut self) -> Option<Duration> {
        Scheduler::save_idle(self)
    }
    fn save_all(&mut self) {
        Scheduler::save_all(self);
    }
    fn store_meter(&self) -> Option<StoreMeter> {
        self.store().map(Store::meter)
    }
}

/// Grace in place of one that no clock can tell: 30 years.
const MAX_GRACE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

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
    /// Where everything of a request is written, its text included.
    pub trace: Option<Arc<Trace>>,
}

/// A request that is ready to run.
pub struct Job {
    /// Id of the request.
    pub request_id: String,
    /// Id of its reply in the client's words.
    pub reply_id: String,
    /// Who asks.
    pub client: Client,
    /// What is wanted.
    pub generation: Arc<Generation>,
    /// The prompt.
    pub prompt: TokenPrompt,
    /// What the content must follow.
    pub schema: Option<SchemaReader>,
    /// What its calls must follow.
    pub calls: Option<CallReader>,
}

/// What a slot does, for whoever looks from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotView {
    /// Tokens in it.
    pub n_tokens: usize,
    /// The request that runs in it.
    pub request_id: Option<String>,
    /// Tokens that this request has generated.
    pub n_decoded: usize,
    /// That request, or the one that ran last.
    pub last: Option<SlotRequest>,
}

/// The story of a slot's request, so far or to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotRequest {
    /// Id of the request.
    pub request_id: String,
    /// Where it came in.
    pub endpoint: Endpoint,
    /// Who asked.
    pub client: Client,
    /// Tokens of its prompt, of those in the slot when it began, and where they came from.
    pub usage: Usage,
    /// Where they came from, as in [`Timings::cache_source`].
    pub source: &'static str,
    /// Why the rest was not cached.
    pub why: String,
    /// Prompt tokens computed in a second, once the prompt is.
    pub prefill_rate: Option<f64>,
    /// Tokens generated in a second.
    pub decode_rate: Option<f64>,
    /// How it ended, in a word; `None` while it runs.
    pub finish: Option<&'static str>,
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
    /// The requests that run or wait.
    requests: Mutex<Vec<Accepted>>,
    in_flight: AtomicUsize,
    running: AtomicUsize,
    stopping: AtomicBool,
    slots: Mutex<Vec<SlotView>>,
    counters: Counters,
    store: Option<StoreMeter>,
}

/// What an accepted job is called.
struct Accepted {
    number: u64,
    request_id: String,
    reply_id: String,
}

enum Command {
    Run(Box<Pending>),
    Cancel(u64),
    EndReasoning(u64),
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
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let requests = self.shared.requests.lock();
        let mut requests = requests.unwrap_or_else(PoisonError::into_inner);
        requests.retain(|accepted| accepted.number != self.number);
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
            last: Vec::new(),
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
            commands: self.commands.clone(),
            shared: Arc::clone(&self.shared),
        };
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Accepted {
                number,
                request_id: job.request_id.clone(),
                reply_id: job.reply_id.clone(),
            });
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

    /// Ends the reasoning of a request, by its id or its reply's; whether there was one. A reply
    /// that is not reasoning is left alone.
    pub fn end_reasoning(&self, id: &str) -> bool {
        self.tell(id, Command::EndReasoning)
    }

    /// Ends a request, by its id or its reply's; whether one ran or waited.
    pub fn cancel(&self, id: &str) -> bool {
        self.tell(id, Command::Cancel)
    }

    /// Sends a command to the oldest request of an id.
    fn tell(&self, id: &str, command: fn(u64) -> Command) -> bool {
        let requests = self.shared.requests.lock();
        let requests = requests.unwrap_or_else(PoisonError::into_inner);
        let found = requests
            .iter()
            .find(|accepted| accepted.request_id == id || accepted.reply_id == id);
        found.is_some_and(|accepted| self.commands.send(command(accepted.number)).is_ok())
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
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now + MAX_GRACE);
        let _ = self.commands.send(Command::Shutdown { deadline });
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
    /// What held for its tokens, for the trace.
    constraints: Vec<Value>,
}

struct Started {
    at: Instant,
    slot: Option<usize>,
    n_cached: usize,
    source: &'static str,
    why: String,
}

struct Body<S> {
    source: S,
    tokenizer: Arc<Tokenizer>,
    turns: Arc<Mutex<Turns>>,
    options: WorkerOptions,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    running: HashMap<SequenceId, Running>,
    /// For every slot, its last request that ended.
    last: Vec<Option<SlotRequest>>,
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
                let received = match self.source.save_idle() {
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
        let mut notices = self.source.take_notices();
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        notices.extend(turns.take_problems());
        drop(turns);
        for notice in notices {
            (self.options.note)(&notice);
        }
    }

    fn try_to_obey(&mut self, command: Command) {
        // Whoever waits for a reply that was not begun learns that nobody makes it.
        if catch_unwind(AssertUnwindSafe(|| self.obey(command))).is_err() {
            (self.options.note)("a request could not be begun or ended, by a bug");
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
            use_cache: job.generation.use_cache,
            anchors: job.prompt.anchors.clone(),
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
                let said = (reply.tokens(), reply.text());
                return self.lose(&job, &events, said, failure);
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
        match catch_unwind(AssertUnwindSafe(|| self.source.tick())) {
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
                    let source = story::source(n_cached, reuse.as_ref());
                    let prompt = &running.job.prompt;
                    let why = reuse.as_ref().map_or_else(String::new, |reuse| {
                        story::why(prompt, &self.tokenizer, n_cached, reuse)
                    });
                    running.started = Some(Started {
                        at: began.max(running.submitted),
                        slot: reuse.as_ref().map(|reuse| reuse.slot),
                        n_cached,
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

    /// Finishes a reply: for the source's reason, or because it ended itself.
    fn end(&mut self, id: SequenceId, reason: Option<FinishReason>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        let mut shown = running.view();
        let Running {
            job,
            events,
            reply,
            submitted,
            started,
            first_token,
            constraints,
            ..
        } = running;
        let reason = reason.unwrap_or(FinishReason::Stop);
        let said = self.options.trace.is_some().then(|| {
            let text = reply.text().to_owned();
            (reply.tokens().to_vec(), text)
        });
        let Ok(ended) = catch_unwind(AssertUnwindSafe(|| reply.finish(reason))) else {
            let failure = internal("finishing the reply failed by a bug");
            let (tokens, text) = said.unwrap_or_default();
            self.lose(&job, &events, (&tokens, &text), failure);
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
            cache_miss: started.as_ref().map_or_else(String::new, |s| s.why.clone()),
        };
        if let Some(turn) = ended.turn
            && job.generation.use_cache
        {
            self.turns
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(turn);
        }
        let calls = said.is_some().then(|| ended.calls.clone());
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
        if let Some((tokens, text)) = said {
            self.write_trace(&trace::Record {
                job: &job,
                prompt: self.text_of(&job.prompt.tokens),
                usage,
                timings: &timings,
                constraints: &constraints,
                tokens: &tokens,
                text: &text,
                calls: calls.as_deref().unwrap_or_default(),
                ending: &ending,
            });
        }
        if let Some(slot) = started.and_then(|started| started.slot) {
            shown.finish = Some(match &ending {
                Ending::Finished(finish) => finish_name(finish),
                Ending::Failed(_) => "failed",
            });
            shown.usage = usage;
            shown.decode_rate = rate(usage.n_generated.saturating_sub(1), timings.decode);
            if self.last.len() <= slot {
                self.last.resize(slot + 1, None);
            }
            self.last[slot] = Some(shown);
        }
        (self.options.log)(&RequestLine {
            request_id: &job.request_id,
            endpoint: job.generation.endpoint,
            client: &job.client,
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
            let said = (running.reply.tokens(), running.reply.text());
            self.lose(&running.job, &running.events, said, failure);
        }
    }

    /// Reports a reply that cannot be finished, after it said these tokens and their text.
    fn lose(
        &self,
        job: &Job,
        events: &UnboundedSender<ReplyEvent>,
        said: (&[u32], &str),
        failure: Failure,
    ) {
        self.shared
            .counters
            .n_failed
            .fetch_add(1, Ordering::Relaxed);
        let usage = Usage {
            n_prompt: job.prompt.tokens.len(),
            ..Usage::default()
        };
        let ending = Ending::Failed(failure.clone());
        if self.options.trace.is_some() {
            self.write_trace(&trace::Record {
                job,
                prompt: self.text_of(&job.prompt.tokens),
                usage,
                timings: &Timings::default(),
                constraints: &[],
                tokens: said.0,
                text: said.1,
                calls: &[],
                ending: &ending,
            });
        }
        (self.options.log)(&RequestLine {
            request_id: &job.request_id,
            endpoint: job.generation.endpoint,
            client: &job.client,
            usage,
            timings: &Timings::default(),
            n_replayed: job.prompt.n_replayed,
            n_rendered: job.prompt.n_rendered,
            ending,
        });
        // Whoever asked may be gone.
        let _ = events.send(ReplyEvent::Failed(failure));
    }

    fn text_of(&self, tokens: &[u32]) -> String {
        let bytes = tokens
            .iter()
            .map(|token| self.tokenizer.token_bytes(*token));
        let bytes: Vec<u8> = bytes.flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn write_trace(&self, record: &trace::Record) {
        if let Some(trace) = &self.options.trace
            && let Err(error) = trace.write(record)
        {
            (self.options.note)(&format!("the trace cannot be written: {error}"));
        }
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
    /// What is known of it by now.
    fn view(&self) -> SlotRequest {
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
            prefill_rate: prefill.and_then(|time| rate(n_prompt - n_cached, time)),
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
