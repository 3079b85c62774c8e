//! The threads that read: one looks at the folder, one loads states.
//!
//! They end when the store is dropped and what they were asked for is done. Nobody waits
//! for that: a file system that does not answer must not keep the program from ending.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::key::FileId;
use super::load::Loaded;
use super::report::Candidate;
use super::shared::Shared;

/// A state that was read in another thread.
#[derive(Debug)]
pub struct Read {
    /// The state.
    pub loaded: Loaded,
    /// How long it took, without what came before it.
    pub time: Duration,
    pub(crate) id: FileId,
}

/// Something that another thread is doing.
#[derive(Debug)]
pub struct Awaited<T> {
    answer: Receiver<T>,
    since: Instant,
}

/// How it stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It is done.
    Done(T),
    /// It is under way.
    Waiting,
    /// Nobody does it any more.
    Lost,
}

impl<T> Awaited<T> {
    /// What came of it, after waiting for so long at most; once it is told, the next answer
    /// is [`Answer::Lost`].
    pub fn within(&self, time: Duration) -> Answer<T> {
        match self.answer.recv_timeout(time) {
            Ok(answer) => Answer::Done(answer),
            Err(RecvTimeoutError::Timeout) => Answer::Waiting,
            Err(RecvTimeoutError::Disconnected) => Answer::Lost,
        }
    }

    /// How long ago it was asked for.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

type Errand<Q, A> = (Q, Sender<A>);

pub(super) struct Reader {
    looks: Sender<Errand<(), ()>>,
    reads: Sender<Errand<Vec<Candidate>, Option<Read>>>,
}

impl Reader {
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Reader> {
        let looks = errands("kv-look", shared, |shared, ()| shared.refresh())?;
        let reads = errands("kv-read", shared, |shared, candidates: Vec<Candidate>| {
            candidates.iter().find_map(|candidate| {
                let began = Instant::now();
                // What cannot be read is told in the store's notices.
                let loaded = shared.load(candidate).ok()?;
                Some(Read {
                    loaded,
                    time: began.elapsed(),
                    id: candidate.id,
                })
            })
        })?;
        Ok(Reader { looks, reads })
    }

    pub(super) fn look(&self) -> Awaited<()> {
        ask(&self.looks, ())
    }

    pub(super) fn read(&self, candidates: Vec<Candidate>) -> Awaited<Option<Read>> {
        ask(&self.reads, candidates)
    }
}

fn ask<Q, A>(errands: &Sender<Errand<Q, A>>, question: Q) -> Awaited<A> {
    let (answers, answer) = channel();
    // A thread that is gone answers nothing, and the answer is lost.
    let _ = errands.send((question, answers));
    Awaited {
        answer,
        since: Instant::now(),
    }
}

/// A thread that does one errand after the other.
fn errands<Q: Send + 'static, A: Send + 'static>(
    name: &str,
    shared: &Arc<Shared>,
    run: impl Fn(&Shared, Q) -> A + Send + 'static,
) -> io::Result<Sender<Errand<Q, A>>> {
    let (sender, inbox) = channel::<Errand<Q, A>>();
    let shared: Weak<Shared> = Arc::downgrade(shared);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            while let Ok((question, answers)) = inbox.recv() {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let done = catch_unwind(AssertUnwindSafe(|| run(&shared, question)));
                if let Ok(answer) = done {
                    // Whoever asked may not wait any more.
                    let _ = answers.send(answer);
                }
            }
        })?;
    Ok(sender)
}
