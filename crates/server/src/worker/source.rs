//! Where tokens come from.

use std::time::Duration;

use ds4_engine::store::{Store, StoreMeter};
use ds4_engine::{
    Constraint, Event, Request, RequestError, Reuse, Scheduler, SequenceId, SlotUse, StepError,
};

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
