//! What is written down when a request is over: its line in the log, its trace, and its turn.
//!
//! One thread does it, so that the one that owns the engine touches no file and waits for no
//! terminal. What comes faster than it can be written is left out and counted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ds4_text::Tokenizer;

use crate::log::RequestLine;
use crate::trace::{Record, Trace};
use crate::turns::{Turn, Turns};

/// Entries that wait to be written; beyond them what comes is left out.
pub const MAX_ENTRIES: usize = 256;
/// How long the end of the program waits for what is yet to be written.
pub const MAX_DRAIN: Duration = Duration::from_secs(10);

/// A request that is over.
pub(crate) struct Closed {
    /// What the log says of it.
    pub(crate) line: RequestLine,
    /// What the trace says of it, if there is one.
    pub(crate) record: Option<Box<Record>>,
    /// What is to be found again when a client sends it back.
    pub(crate) turn: Option<Arc<Turn>>,
}

enum Entry {
    Closed(Box<Closed>),
    Note(String),
    /// Something else to be written.
    Write(Box<dyn FnOnce() + Send>),
    /// Whoever waits here learns that what came before is written.
    Mark(SyncSender<()>),
}

/// Reads the line that a request leaves.
pub type Log = Arc<dyn Fn(&RequestLine) + Send + Sync>;
/// Reads what else is worth knowing.
pub type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// Passes on what is to be written.
pub(crate) struct Bookkeeper {
    /// Gone when the books are closed.
    entries: Mutex<Option<SyncSender<Entry>>>,
    n_left_out: Arc<AtomicU64>,
    ended: Mutex<Receiver<()>>,
}

struct Books {
    tokenizer: Arc<Tokenizer>,
    turns: Arc<Turns>,
    log: Log,
    note: Note,
    trace: Option<Arc<Trace>>,
}

impl Bookkeeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        tokenizer: Arc<Tokenizer>,
        turns: Arc<Turns>,
        log: Log,
        note: Note,
        trace: Option<Arc<Trace>>,
    ) -> std::io::Result<Bookkeeper> {
        let books = Books {
            tokenizer,
            turns,
            log,
            note,
            trace,
        };
        let (entries, inbox) = sync_channel(MAX_ENTRIES);
        let (end, ended) = channel();
        let n_left_out = Arc::new(AtomicU64::new(0));
        let left_out = Arc::clone(&n_left_out);
        std::thread::Builder::new()
            .name("ds4-books".to_owned())
            .spawn(move || {
                books.keep(&inbox, &left_out);
                drop(end);
            })?;
        Ok(Bookkeeper {
            entries: Mutex::new(Some(entries)),
            n_left_out,
            ended: Mutex::new(ended),
        })
    }

    /// Has a request that is over written down.
    pub(crate) fn close(&self, closed: Closed) {
        self.put(Entry::Closed(Box::new(closed)));
    }

    /// Has something else said.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.put(Entry::Note(text.into()));
    }

    /// Has something else written.
    pub(crate) fn write_down(&self, write: impl FnOnce() + Send + 'static) {
        self.put(Entry::Write(Box::new(write)));
    }

    fn entries(&self) -> Option<SyncSender<Entry>> {
        let entries = self.entries.lock();
        entries.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, entry: Entry) {
        let taken = self.entries().is_some_and(|to| to.try_send(entry).is_ok());
        if !taken {
            self.n_left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Entries that were left out.
    pub(crate) fn n_left_out(&self) -> u64 {
        self.n_left_out.load(Ordering::Relaxed)
    }

    /// Waits until everything so far is written.
    pub(crate) fn settle(&self) {
        let (done, is_done) = sync_channel(1);
        if self
            .entries()
            .is_some_and(|to| to.send(Entry::Mark(done)).is_ok())
        {
            // An error says that nobody writes any more.
            let _ = is_done.recv();
        }
    }

    /// Takes no more, and waits for the rest to be written, though not for ever: a terminal that
    /// takes nothing must not keep the program from ending.
    pub(crate) fn end(&self) {
        let entries = self.entries.lock();
        drop(entries.unwrap_or_else(PoisonError::into_inner).take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is ever sent: the thread's end ends the wait.
        let _ = ended.recv_timeout(MAX_DRAIN);
    }
}

impl Books {
    fn keep(&self, inbox: &Receiver<Entry>, n_left_out: &AtomicU64) {
        let mut n_told = 0;
        while let Ok(entry) = inbox.recv() {
            match entry {
                Entry::Closed(closed) => self.write(&closed),
                Entry::Note(text) => self.say(&text),
                Entry::Write(write) => {
                    if catch_unwind(AssertUnwindSafe(write)).is_err() {
                        self.say("something could not be written, by a bug");
                    }
                }
                Entry::Mark(done) => {
                    // Whoever asked may not wait any more.
                    let _ = done.send(());
                }
            }
            for problem in self.turns.take_problems() {
                self.say(&problem);
            }
            let n = n_left_out.load(Ordering::Relaxed);
            if n > n_told {
                let n_new = n - n_told;
                self.say(&format!(
                    "{n_new} entries of the log were left out: it is too slow"
                ));
                n_told = n;
            }
        }
    }

    fn write(&self, closed: &Closed) {
        // A sink that fails by a bug loses what it was told, and nothing else.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.log)(&closed.line)));
        if let (Some(trace), Some(record)) = (&self.trace, &closed.record) {
            let written = catch_unwind(AssertUnwindSafe(|| {
                trace.write(&closed.line, record, &self.tokenizer)
            }));
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.say(&format!("the trace cannot be written: {error}")),
                Err(_) => self.say("the trace cannot be written, by a bug"),
            }
        }
        if let Some(turn) = &closed.turn {
            let written = catch_unwind(AssertUnwindSafe(|| self.turns.write(turn)));
            if written.is_err() {
                self.say("the turn log cannot be written, by a bug");
            }
        }
    }

    fn say(&self, text: &str) {
        let _ = catch_unwind(AssertUnwindSafe(|| (self.note)(text)));
    }
}
