//! The replies to one request: one, or a choice of several that are made side by side.

use std::task::{Context, Poll};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;

use crate::generation::{Failure, FailureKind, ReplyEvent};
use crate::worker::{Job, Ticket, Worker};

/// What the worker says of every reply. Dropping it cancels those that are not over.
pub(super) struct Replies {
    /// The replies that are not over.
    events: Vec<Option<UnboundedReceiver<ReplyEvent>>>,
    /// Where to look next, so that none waits for the others.
    next: usize,
    tickets: Vec<Ticket>,
}

impl Replies {
    /// Has all of these made, or none.
    ///
    /// # Errors
    /// The queue has no room for all of them, or there is no worker.
    pub(super) fn submit(worker: &Worker, jobs: Vec<Job>) -> Result<Replies, Failure> {
        let mut replies = Replies {
            events: Vec::with_capacity(jobs.len()),
            next: 0,
            tickets: Vec::with_capacity(jobs.len()),
        };
        for job in jobs {
            let (events, ticket) = worker.submit(job)?;
            replies.events.push(Some(events));
            replies.tickets.push(ticket);
        }
        Ok(replies)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// The next event, and the number of its reply; `None` when all are over.
    pub(super) async fn recv(&mut self) -> Option<(usize, ReplyEvent)> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, ReplyEvent)>> {
        let mut all_are_over = true;
        for i in self.order() {
            let Some(events) = &mut self.events[i] else {
                continue;
            };
            match events.poll_recv(context) {
                Poll::Ready(event) => {
                    let event = event.unwrap_or_else(|| ReplyEvent::Failed(lost()));
                    return Poll::Ready(Some(self.pass(i, event)));
                }
                Poll::Pending => all_are_over = false,
            }
        }
        match all_are_over {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    /// The next event, if there is one already.
    pub(super) fn try_recv(&mut self) -> Option<(usize, ReplyEvent)> {
        for i in self.order() {
            let Some(events) = &mut self.events[i] else {
                continue;
            };
            let event = match events.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Empty) => continue,
                Err(TryRecvError::Disconnected) => ReplyEvent::Failed(lost()),
            };
            return Some(self.pass(i, event));
        }
        None
    }

    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (n, next) = (self.events.len(), self.next);
        (0..n).map(move |k| (next + k) % n)
    }

    fn pass(&mut self, i: usize, event: ReplyEvent) -> (usize, ReplyEvent) {
        self.next = i + 1;
        if matches!(event, ReplyEvent::Finished(_) | ReplyEvent::Failed(_)) {
            self.events[i] = None;
        }
        (i, event)
    }

    /// Gives up what is not over.
    pub(super) fn cancel(&mut self) {
        self.tickets.clear();
    }
}

/// A reply whose worker went away without a word.
fn lost() -> Failure {
    Failure {
        kind: FailureKind::Internal,
        message: "the engine stopped; the request is lost".to_owned(),
        param: None,
    }
}
