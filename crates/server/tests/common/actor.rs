//! A source of tokens that computes like any other and says what is written down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ds4_engine::{
    Constraint, Event, Request, RequestError, Reuse, Scheduler, SequenceId, SlotUse, StepError,
    TokenSet,
};
use ds4_server::worker::TokenSource;
use ds4_text::Tokenizer;

/// Writes the reply to a prompt in tokens, without the end-of-sentence token; `None` for what the
/// model likes.
pub(crate) type Play = Box<dyn FnMut(&[u32]) -> Option<Vec<u32>> + Send>;

/// What a request was, and what became of it.
#[allow(
    dead_code,
    reason = "not every test target that has actors looks at all of it"
)]
#[derive(Clone, Debug)]
pub(crate) struct Take {
    /// Its prompt.
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the prompt that were not computed.
    pub(crate) n_cached: usize,
    /// Tokens said.
    pub(crate) said: Vec<u32>,
}

/// The requests of an actor in the order in which they came.
pub(crate) type Takes = Arc<Mutex<Vec<Take>>>;

/// The lines of one sequence.
struct Role {
    /// Its number among the takes.
    take: usize,
    /// Tokens to say, the end-of-sentence token last; none when it may say what it likes.
    lines: Option<Vec<u32>>,
    n_said: usize,
    /// What the server asks for.
    wanted: Constraint,
}

impl Role {
    fn next(&self) -> Option<u32> {
        self.lines.as_ref()?.get(self.n_said).copied()
    }
}

/// A scheduler whose sequences say the lines of a play.
pub(crate) struct Actor {
    scheduler: Scheduler,
    tokenizer: Arc<Tokenizer>,
    play: Play,
    takes: Takes,
    roles: HashMap<SequenceId, Role>,
    notices: Vec<String>,
}

impl Actor {
    /// Says the lines of this play, and writes down what it said.
    pub(crate) fn new(scheduler: Scheduler, play: Play, takes: Takes) -> Actor {
        let tokenizer = scheduler.engine().tokenizer();
        Actor {
            tokenizer: Arc::clone(tokenizer.expect("the model has a tokenizer")),
            scheduler,
            play,
            takes,
            roles: HashMap::new(),
            notices: Vec::new(),
        }
    }

    fn takes(&self) -> MutexGuard<'_, Vec<Take>> {
        self.takes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a sequence the next token of its lines only, if the server admits that.
    fn prompt(&mut self, id: SequenceId) {
        let Some(role) = self.roles.get(&id) else {
            return;
        };
        let mut constraint = role.wanted.clone();
        if let Some(next) = role.next() {
            let allowed = constraint.allowed.as_ref();
            if constraint.forbidden.contains(&next) || allowed.is_some_and(|s| !s.contains(next)) {
                let text = self.tokenizer.decode(&[next]).unwrap_or_default();
                let notice = format!("the server does not admit {text:?} of the lines");
                self.notices.push(notice);
            } else {
                let mut only = TokenSet::empty(self.tokenizer.n_vocab());
                only.insert(next);
                constraint.allowed = Some(Arc::new(only));
            }
        }
        self.scheduler.constrain(id, constraint);
    }
}

impl TokenSource for Actor {
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        let prompt = request.tokens.clone();
        // Clients in tests ask again within the milliseconds that writing takes.
        if let Some(store) = self.scheduler.store() {
            store.flush();
        }
        let id = self.scheduler.submit(request)?;
        let lines = (self.play)(&prompt).map(|mut lines| {
            lines.push(self.tokenizer.protocol().eos);
            lines
        });
        let mut takes = self.takes();
        let role = Role {
            take: takes.len(),
            lines,
            n_said: 0,
            wanted: Constraint::default(),
        };
        takes.push(Take {
            prompt,
            n_cached: 0,
            said: Vec::new(),
        });
        drop(takes);
        self.roles.insert(id, role);
        Ok(id)
    }

    fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        if let Some(role) = self.roles.get_mut(&id) {
            role.wanted = constraint;
        }
    }

    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        // What the server says for the model is no line any more.
        if let Some(role) = self.roles.get_mut(&id)
            && let Some(lines) = &role.lines
            && lines[role.n_said..].starts_with(tokens)
        {
            role.n_said += tokens.len();
        }
        self.scheduler.force(id, tokens);
    }

    fn cancel(&mut self, id: SequenceId) {
        self.roles.remove(&id);
        self.scheduler.cancel(id);
    }

    fn contains(&self, id: SequenceId) -> bool {
        self.scheduler.contains(id)
    }

    fn reuse(&self, id: SequenceId) -> Option<Reuse> {
        self.scheduler.reuse(id)
    }

    fn slots(&self) -> Vec<SlotUse> {
        self.scheduler.slots()
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    fn tick(&mut self) -> Result<Vec<Event>, StepError> {
        // Only now has the server said what it asks for.
        let all: Vec<SequenceId> = self.roles.keys().copied().collect();
        for id in all {
            self.prompt(id);
        }
        let events = self.scheduler.tick()?;
        for event in &events {
            match event {
                Event::Prefill { id, n_cached, .. } => {
                    let take = self.roles.get(id).map(|role| role.take);
                    if let Some(take) = take {
                        self.takes()[take].n_cached = *n_cached;
                    }
                }
                Event::Token { id, token, .. } => {
                    if let Some(role) = self.roles.get_mut(id) {
                        role.n_said += 1;
                        let take = role.take;
                        self.takes()[take].said.push(*token);
                    }
                }
                Event::Finished { id, .. } => {
                    self.roles.remove(id);
                }
            }
        }
        Ok(events)
    }

    fn reset(&mut self) {
        self.roles.clear();
        self.scheduler.reset();
    }

    fn take_notices(&mut self) -> Vec<String> {
        let mut notices = std::mem::take(&mut self.notices);
        notices.extend(self.scheduler.take_store_notices());
        notices
    }

    fn save_idle(&mut self) -> Option<Duration> {
        TokenSource::save_idle(&mut self.scheduler)
    }

    fn save_all(&mut self) {
        self.scheduler.save_all();
    }
}
