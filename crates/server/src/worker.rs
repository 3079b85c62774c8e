//! The one thread that owns the engine.
//!
//! It takes jobs, lets the scheduler run step after step, turns tokens into events, and between
//! two steps does what it was told meanwhile: cancel, end the reasoning, shut down. A panic in one
//! reply ends that reply; one in the engine ends the replies that ran and empties the slots.

mod body;
mod ending;
mod source;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ds4_engine::store::{StoreCounts, StoreMeter, StoreUsage};
use ds4_text::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::bookkeeper::{Bookkeeper, Log, Note};
use crate::calls::CallReader;
use crate::generation::{Endpoint, Failure, FailureKind, Generation, ReplyEvent, Usage};
use crate::log::Client;
use crate::prompt::TokenPrompt;
use crate::schema::SchemaReader;
use crate::trace::Trace;
use crate::turns::Turns;

use body::Body;
pub use source::TokenSource;

/// How long a step may take before the engine counts as stalled: no device computes for so long.
pub const STALLED_AFTER: Duration = Duration::from_secs(15 * 60);
/// Grace in place of one that no clock can tell: 30 years.
const MAX_GRACE: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// How long a reply is taken to run before any has ended, in milliseconds.
const ASSUMED_REPLY_MS: u64 = 5000;
/// Times over which clients that are turned away are spread.
const TURNS: u64 = 8;

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
    pub log: Log,
    /// Reads what else is worth knowing.
    pub note: Note,
    /// How long a step may take before the engine counts as stalled.
    pub stalled_after: Duration,
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
    /// Where they came from, as in [`Timings::cache_source`](crate::generation::Timings::cache_source).
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
    /// Whether the thread is over.
    has_ended: AtomicBool,
    /// Whether the device is gone for good.
    is_lost: AtomicBool,
    /// When the step began that is under way.
    step: Mutex<Option<Instant>>,
    slots: Mutex<Vec<SlotView>>,
    /// About how long a reply runs.
    reply_ms: AtomicU64,
    /// Requests that were told when to come again.
    n_turned_away: AtomicU64,
    counters: Counters,
    store: Option<StoreMeter>,
}

impl Shared {
    fn set_step(&self, began: Option<Instant>) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }
}

/// Whether the engine lives and steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Well,
    /// A step takes longer than any should.
    Stalled,
    /// The device is gone for this process: nothing can be computed any more.
    Lost,
    /// Its thread is over.
    Ended,
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
    books: Arc<Bookkeeper>,
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
        turns: Arc<Turns>,
        options: WorkerOptions,
    ) -> std::io::Result<Worker> {
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            store: source.store_meter(),
            ..Shared::default()
        });
        let books = Arc::new(Bookkeeper::start(
            Arc::clone(&tokenizer),
            Arc::clone(&turns),
            Arc::clone(&options.log),
            Arc::clone(&options.note),
            options.trace.clone(),
        )?);
        let mut body = Body {
            books: Arc::clone(&books),
            source,
            tokenizer,
            turns,
            options: options.clone(),
            inbox,
            shared: Arc::clone(&shared),
            running: HashMap::new(),
            last: Vec::new(),
            deadline: None,
            lost: None,
        };
        body.publish();
        let thread = std::thread::Builder::new()
            .name("ds4-engine".to_owned())
            .spawn(move || body.run())?;
        Ok(Worker {
            commands,
            shared,
            options,
            books,
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
        if self.shared.is_lost.load(Ordering::Acquire) {
            return Err(lost());
        }
        if self.shared.has_ended.load(Ordering::Acquire) {
            return Err(stopped());
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
            return Err(stopped());
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

    /// Sends a command to the requests of an id: the choices of one reply share it.
    fn tell(&self, id: &str, command: fn(u64) -> Command) -> bool {
        let requests = self.shared.requests.lock();
        let requests = requests.unwrap_or_else(PoisonError::into_inner);
        let found = requests
            .iter()
            .filter(|accepted| accepted.request_id == id || accepted.reply_id == id);
        let told = found.filter(|accepted| self.commands.send(command(accepted.number)).is_ok());
        told.count() > 0
    }

    /// Requests that run, and that wait.
    pub fn load(&self) -> (usize, usize) {
        let running = self.shared.running.load(Ordering::Acquire);
        let in_flight = self.shared.in_flight.load(Ordering::Acquire);
        (running, in_flight.saturating_sub(running))
    }

    /// Whether the engine lives and steps.
    pub fn health(&self) -> Health {
        if self.shared.is_lost.load(Ordering::Acquire) {
            return Health::Lost;
        }
        if self.shared.has_ended.load(Ordering::Acquire) {
            return Health::Ended;
        }
        let step = self.shared.step.lock();
        let began = *step.unwrap_or_else(PoisonError::into_inner);
        match began {
            Some(began) if began.elapsed() >= self.options.stalled_after => Health::Stalled,
            _ => Health::Well,
        }
    }

    /// Entries of the log that were left out because it was too slow.
    pub fn n_left_out(&self) -> u64 {
        self.books.n_left_out()
    }

    /// Has something said in the log.
    pub fn note(&self, text: String) {
        self.books.note(text);
    }

    /// Has something written down, by the thread that does so.
    pub(crate) fn write_down(&self, write: impl FnOnce() + Send + 'static) {
        self.books.write_down(write);
    }

    /// Waits until what happened so far is written down.
    pub fn settle(&self) {
        self.books.settle();
    }

    /// Seconds after which one more request is likely to find room, 1 to 60: half as long as those
    /// that run and wait will take, for one client after another up to all of it, so that not all who
    /// were turned away come again at once.
    pub fn retry_after_s(&self) -> u64 {
        let (running, waiting) = self.load();
        let turn = self.shared.n_turned_away.fetch_add(1, Ordering::Relaxed);
        let reply_ms = match self.shared.reply_ms.load(Ordering::Relaxed) {
            0 => ASSUMED_REPLY_MS,
            ms => ms,
        };
        retry_after_s(reply_ms, running + waiting, self.options.n_slots, turn)
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
        self.books.end();
    }
}

/// Of `n_requests` in all, for the client that is turned away in this turn.
fn retry_after_s(reply_ms: u64, n_requests: usize, n_slots: usize, turn: u64) -> u64 {
    let rounds = n_requests.div_ceil(n_slots.max(1)) as u64;
    let half_ms = reply_ms.saturating_mul(rounds) / 2;
    let part = turn % TURNS;
    (half_ms.saturating_mul(TURNS + part) / TURNS)
        .div_ceil(1000)
        .clamp(1, 60)
}

fn shutting_down() -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: "the server is shutting down".to_owned(),
        param: None,
    }
}

fn stopped() -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: "the engine has stopped; the server must be restarted".to_owned(),
        param: None,
    }
}

fn lost() -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: "the device is lost; what is stored is safe, and the server must be restarted"
            .to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many clients that ask at once are lost, when each comes again twice after the
    /// time that it is told, as the SDKs do. `known` says whether it is known how long a reply takes.
    fn n_lost(
        n_clients: usize,
        n_slots: usize,
        max_queue: usize,
        reply_ms: u64,
        known: bool,
    ) -> usize {
        let limit = n_slots + max_queue;
        // Milliseconds at which clients come, and how often they have come.
        let mut coming: Vec<(u64, u32)> = vec![(0, 0); n_clients];
        // When the requests that were let in end, in order.
        let mut ends: Vec<u64> = Vec::new();
        let (mut n_lost, mut turn) = (0, 0);
        while let Some(next) = coming.iter().min().copied() {
            let at = coming
                .iter()
                .position(|client| *client == next)
                .expect("it is there");
            coming.swap_remove(at);
            let (now, n_retries) = next;
            let inside = ends.iter().filter(|end| **end > now).count();
            if inside < limit {
                let free = ends.iter().rev().nth(n_slots - 1).copied().unwrap_or(0);
                ends.push(free.max(now) + reply_ms);
                ends.sort_unstable();
            } else if n_retries == 2 {
                n_lost += 1;
            } else {
                let has_ended = known || ends.iter().any(|end| *end <= now);
                let told = if has_ended {
                    reply_ms
                } else {
                    ASSUMED_REPLY_MS
                };
                let wait = retry_after_s(told, inside, n_slots, turn);
                turn += 1;
                coming.push((now + wait * 1000, n_retries + 1));
            }
        }
        n_lost
    }

    #[test]
    fn of_120_calls_at_once_on_4_slots_none_is_lost() {
        for reply_ms in [1, 20, 100, 700, 1500, 3000, 6000] {
            for known in [false, true] {
                assert_eq!(
                    n_lost(120, 4, 64, reply_ms, known),
                    0,
                    "{reply_ms} ms, {known}"
                );
            }
        }
        // What takes longer than clients wait needs a place for everybody.
        assert!(n_lost(120, 4, 64, 60_000, true) > 0);
        let queue = crate::http::DEFAULT_MAX_QUEUE;
        assert_eq!(n_lost(120, 4, queue, 60_000, true), 0);
    }
}
