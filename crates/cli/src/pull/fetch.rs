//! The connections, and the record of what they have brought.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::part::Part;
use super::{Failure, Identity, Order, Remote};
use crate::interrupt;
use crate::sums::write_at;

/// Longest time between two records of what is on disk.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Pieces after which it is recorded sooner.
const SAVE_PIECES: u64 = 4;
/// Time between two looks at what the connections do.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Time that connections have to end after Ctrl+C; they hold nothing that is not written down.
const END_TIME: Duration = Duration::from_millis(500);
/// Bytes read from a connection at once.
const READ_BYTES: usize = 1 << 18;
/// The wait after the first failure; it doubles with each that follows.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Doublings of the wait, at most.
const MAX_DOUBLINGS: u32 = 8;

/// How fetching ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every byte is there.
    Complete,
    /// Ctrl+C.
    Interrupted,
    /// The server has another content now.
    Changed,
}

/// What the connections share.
struct Shared {
    remote: Arc<Remote>,
    identity: Identity,
    file: File,
    pieces: Vec<std::ops::Range<u64>>,
    /// Bytes of each piece that were written.
    done: Vec<AtomicU64>,
    waiting: Mutex<VecDeque<usize>>,
    /// Bytes that came, over all pieces.
    n_received: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Failure>>,
    /// The last thing that went wrong and was tried again.
    trouble: Mutex<Option<String>>,
    n_failures: usize,
}

/// Fetches what a part lacks; `on` is told the bytes that are there and the last trouble.
///
/// # Errors
/// The server refuses, fails too often in a row, or the disk does not take the bytes. What came
/// stays for the next time.
pub(crate) fn fetch(
    remote: &Arc<Remote>,
    order: &Order,
    identity: &Identity,
    part: &mut Part,
    on: &mut dyn FnMut(u64, Option<&str>),
) -> Result<End> {
    let n_pieces = part.done().len();
    let pieces: Vec<_> = (0..n_pieces).map(|i| part.piece(i)).collect();
    let lacks = |i: &usize| part.done()[*i] < pieces[*i].end - pieces[*i].start;
    let waiting: VecDeque<usize> = (0..n_pieces).filter(lacks).collect();
    let n_connections = match identity.has_ranges {
        true => order.n_connections.min(waiting.len()),
        false => waiting.len().min(1),
    };
    let shared = Arc::new(Shared {
        remote: Arc::clone(remote),
        identity: identity.clone(),
        file: part.writer()?,
        done: part.done().iter().map(|&n| AtomicU64::new(n)).collect(),
        pieces,
        waiting: Mutex::new(waiting),
        n_received: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        trouble: Mutex::new(None),
        n_failures: order.n_failures,
    });
    let mut workers = Vec::new();
    for _ in 0..n_connections {
        let shared = Arc::clone(&shared);
        workers.push(thread::spawn(move || {
            if let Err(failure) = shared.work() {
                *lock(&shared.failure) = Some(failure);
                shared.stop.store(true, Ordering::SeqCst);
            }
        }));
    }
    let mut last_save = Instant::now();
    let mut n_saved = part.n_done();
    let ended = |workers: &[thread::JoinHandle<()>]| workers.iter().all(|w| w.is_finished());
    while !ended(&workers) && !interrupt::requested() {
        thread::sleep(LOOK_INTERVAL);
        on(shared.n_done(), lock(&shared.trouble).as_deref());
        let is_due = last_save.elapsed() >= SAVE_INTERVAL
            || shared.n_done() - n_saved >= SAVE_PIECES * order.piece_bytes;
        if is_due {
            if let Err(error) = part.save(shared.snapshot()) {
                shared.stop.store(true, Ordering::SeqCst);
                return Err(error);
            }
            last_save = Instant::now();
            n_saved = part.n_done();
        }
    }
    shared.stop.store(true, Ordering::SeqCst);
    let interrupted = interrupt::requested();
    if interrupted {
        let start = Instant::now();
        while !ended(&workers) && start.elapsed() < END_TIME {
            thread::sleep(LOOK_INTERVAL);
        }
    } else {
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow!("a connection's thread failed"))?;
        }
    }
    part.save(shared.snapshot())?;
    on(shared.n_done(), None);
    let failure = lock(&shared.failure).take();
    match failure {
        _ if interrupted => Ok(End::Interrupted),
        None => Ok(End::Complete),
        Some(Failure::Changed) => Ok(End::Changed),
        Some(Failure::Fatal(error)) => Err(error),
        Some(Failure::Again(why, _)) => Err(anyhow!(
            "gave up after {} failures in a row: {why}; what came is kept, and the same command \
             goes on from there",
            order.n_failures
        )),
    }
}

impl Shared {
    fn n_done(&self) -> u64 {
        self.done.iter().map(|n| n.load(Ordering::SeqCst)).sum()
    }

    fn snapshot(&self) -> Vec<u64> {
        self.done.iter().map(|n| n.load(Ordering::SeqCst)).collect()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// One connection: pieces until none waits.
    fn work(&self) -> Result<(), Failure> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let next = lock(&self.waiting).pop_front();
            let Some(piece) = next else { return Ok(()) };
            let mut failures = 0;
            let mut seen = self.n_received.load(Ordering::SeqCst);
            while !self.stopped() {
                let attempt = match self.identity.has_ranges {
                    true => self.fetch_piece(piece, &mut buffer),
                    false => self.fetch_whole(&mut buffer),
                };
                let (why, wait) = match attempt {
                    Ok(()) => break,
                    Err(Failure::Again(why, wait)) => (why, wait),
                    Err(other) => return Err(other),
                };
                let received = self.n_received.load(Ordering::SeqCst);
                failures = if received == seen { failures + 1 } else { 1 };
                seen = received;
                *lock(&self.trouble) = Some(why.clone());
                if failures >= self.n_failures {
                    return Err(Failure::Again(why, None));
                }
                let backoff = FIRST_WAIT * (1 << (failures as u32 - 1).min(MAX_DOUBLINGS));
                self.sleep(wait.unwrap_or(backoff));
            }
            if self.stopped() {
                return Ok(());
            }
            if !self.identity.has_ranges {
                lock(&self.waiting).clear();
            }
        }
    }

    /// Waits, but not when everything stops.
    fn sleep(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && !self.stopped() {
            thread::sleep(LOOK_INTERVAL.min(time));
        }
    }

    /// What is missing of a piece.
    fn fetch_piece(&self, piece: usize, buffer: &mut [u8]) -> Result<(), Failure> {
        let range = &self.pieces[piece];
        let start = range.start + self.done[piece].load(Ordering::SeqCst);
        if start >= range.end {
            return Ok(());
        }
        let mut body = self.remote.open(start..range.end, &self.identity)?;
        let mut at = start;
        while at < range.end && !self.stopped() {
            let len = buffer.len().min((range.end - at) as usize);
            let n = self.read(&mut body, &mut buffer[..len], at)?;
            self.done[piece].fetch_add(n as u64, Ordering::SeqCst);
            at += n as u64;
        }
        Ok(())
    }

    /// The whole file, from a server that does not send parts.
    fn fetch_whole(&self, buffer: &mut [u8]) -> Result<(), Failure> {
        let n_bytes = self.identity.n_bytes;
        let mut body = self.remote.open(0..n_bytes, &self.identity)?;
        let mut at = 0;
        for (piece, range) in self.pieces.iter().enumerate() {
            while at < range.end && !self.stopped() {
                let len = buffer.len().min((range.end - at) as usize);
                let n = self.read(&mut body, &mut buffer[..len], at)?;
                at += n as u64;
                self.done[piece].fetch_max(at - range.start, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    /// The next bytes of a body, written to their place.
    fn read(&self, body: &mut impl io::Read, buffer: &mut [u8], at: u64) -> Result<usize, Failure> {
        let n = body
            .read(buffer)
            .map_err(|e| Failure::Again(format!("the connection failed: {e}"), None))?;
        if n == 0 {
            let why = "the connection ended before the bytes that it announced";
            return Err(Failure::Again(why.to_owned(), None));
        }
        write_at(&self.file, &buffer[..n], at).map_err(|e| Failure::Fatal(not_written(e)))?;
        self.n_received.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n)
    }
}

fn not_written(error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; make room and run the same command again: it goes on from there"
        }
        io::ErrorKind::FileTooLarge => {
            "cannot write the bytes that came: files of this size are not allowed here"
        }
        _ => "cannot write the bytes that came",
    };
    Err::<(), _>(error).context(hint).unwrap_err()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that failed while holding it left a whole value: each use is one assignment.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
