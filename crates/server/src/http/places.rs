//! Places of connections, which clients that send slowly give up to others.
//!
//! A connection that waits for the rest of a request costs a place and gives nothing. When all
//! places are taken, the one that has waited longest makes room for a newcomer, so that no number
//! of slow clients locks the others out. Connections whose answer is in the making stay.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Time that a connection has to say why it ends, once it is to make room.
const FAREWELL: Duration = Duration::from_millis(500);
/// Longest wait for a place that is being given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The places of a server.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    /// Shortest wait for a request after which a connection can be asked to go.
    yields_after: Duration,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    lines: HashMap<u64, Arc<Line>>,
    n_given: u64,
}

/// A place, until it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    pub(crate) line: Arc<Line>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().lines.remove(&self.number);
    }
}

impl Places {
    pub(crate) fn new(n: usize, yields_after: Duration) -> Arc<Places> {
        Arc::new(Places {
            free: Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS))),
            yields_after,
            taken: Mutex::default(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if one is free.
    pub(crate) fn try_take(self: &Arc<Places>) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(self.give(permit))
    }

    /// A place that another connection gives up, if there is one that can.
    pub(crate) async fn take_over(self: &Arc<Places>) -> Option<Place> {
        let line = self.longest_wait()?;
        line.gone.send_replace(true);
        // It has gone by then; others may be faster to take its place.
        let permit = Arc::clone(&self.free).acquire_owned();
        let permit = tokio::time::timeout(PATIENCE, permit).await;
        Some(self.give(permit.ok()?.ok()?))
    }

    fn give(self: &Arc<Places>, permit: OwnedSemaphorePermit) -> Place {
        let line = Arc::new(Line {
            phase: Mutex::new(Phase::Silent(Instant::now())),
            gone: watch::Sender::new(false),
        });
        let mut taken = self.taken();
        taken.n_given += 1;
        let number = taken.n_given;
        taken.lines.insert(number, Arc::clone(&line));
        Place {
            places: Arc::clone(self),
            number,
            line,
            _permit: permit,
        }
    }

    /// The connection that has waited longest for a request, which is thereby told to go.
    fn longest_wait(&self) -> Option<Arc<Line>> {
        let taken = self.taken();
        let waits = taken.lines.values().filter_map(|line| {
            let since = match *line.phase() {
                Phase::Silent(since) | Phase::Sending(since) => since,
                Phase::Answered | Phase::Leaving { .. } => return None,
            };
            (since.elapsed() >= self.yields_after).then_some((since, line))
        });
        let (_, line) = waits.min_by_key(|(since, _)| *since)?;
        let mut phase = line.phase();
        let sends = matches!(*phase, Phase::Sending(_));
        *phase = Phase::Leaving { sends };
        drop(phase);
        Some(Arc::clone(line))
    }
}

/// What a connection is doing.
pub(crate) struct Line {
    phase: Mutex<Phase>,
    /// Whether it is to make room.
    gone: watch::Sender<bool>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// It waits for the head of a request.
    Silent(Instant),
    /// It waits for the rest of a body.
    Sending(Instant),
    /// Its answer is made or sent.
    Answered,
    /// It has been told to go, while it was sending or not.
    Leaving { sends: bool },
}

impl Line {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, next: Phase) {
        let mut phase = self.phase();
        if !matches!(*phase, Phase::Leaving { .. }) {
            *phase = next;
        }
    }

    /// Waits until this connection is to end: one that is sending has a moment to hear why.
    pub(crate) async fn ends(&self) {
        self.told().await;
        let sends = matches!(*self.phase(), Phase::Leaving { sends: true });
        if sends {
            // The body that is waited for ends in an error, which is answered.
            tokio::time::sleep(FAREWELL).await;
        }
    }

    async fn told(&self) {
        // The sender is here, so it says so or nothing.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// The body of a request on this connection.
    pub(crate) fn sent(self: &Arc<Line>, body: hyper::body::Incoming) -> Body {
        if body.is_end_stream() {
            self.enter(Phase::Answered);
            return Body::new(body);
        }
        self.enter(Phase::Sending(Instant::now()));
        Body::new(Sent {
            body,
            told: {
                let line = Arc::clone(self);
                Box::pin(async move { line.told().await })
            },
            line: Arc::clone(self),
        })
    }

    /// The body of an answer on this connection, which waits for a request behind it.
    pub(crate) fn answered(self: &Arc<Line>, body: Body) -> Body {
        self.enter(Phase::Answered);
        Body::new(Answered {
            body,
            line: Arc::clone(self),
        })
    }
}

/// Why a body is not read to its end.
#[derive(Debug)]
pub(crate) struct GaveWay;

impl fmt::Display for GaveWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it came so slowly that its place went to another connection")
    }
}

impl std::error::Error for GaveWay {}

/// The body of a request, which ends in an error when its connection is to make room.
struct Sent {
    body: hyper::body::Incoming,
    told: Pin<Box<dyn Future<Output = ()> + Send>>,
    line: Arc<Line>,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                if frame.is_none() || this.body.is_end_stream() {
                    this.line.enter(Phase::Answered);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(this.told.as_mut().poll(context));
                Poll::Ready(Some(Err(Box::new(GaveWay))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer.
struct Answered {
    body: Body,
    line: Arc<Line>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.line.enter(Phase::Silent(Instant::now()));
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
