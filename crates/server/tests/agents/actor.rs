//! A source of tokens that computes like any other and says what is written down.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_engine::{
    Constraint, Event, Request, RequestError, Reuse, Scheduler, SequenceId, SlotUse, StepError,
    TokenSet,
};
use ds4_server::worker::TokenSource;
use ds4_text::Tokenizer;

/// Writes the reply to a prompt, without the end-of-sentence marker.
pub(crate) type Play = fn(&str) -> String;

/// The lines of one sequence.
struct Role {
    /// Tokens to say, the end-of-sentence token last.
    lines: Vec<u32>,
    n_said: usize,
    /// What the worker admits.
    admitted: Constraint,
}

/// A scheduler whose sequences say the lines of a play.
pub(crate) struct Actor {
    scheduler: Scheduler,
    tokenizer: Arc<Tokenizer>,
    play: Play,
    roles: HashMap<SequenceId, Role>,
    notices: Vec<String>,
}

impl Actor {
    /// Says the lines of this play.
    pub(crate) fn new(scheduler: Scheduler, tokenizer: Arc<Tokenizer>, play: Play) -> Actor {
        Actor {
            scheduler,
            tokenizer,
            play,
            roles: HashMap::new(),
            notices: Vec::new(),
        }
    }

    /// Leaves a sequence the next token of its lines only.
    fn prompt(&mut self, id: SequenceId) {
        let Some(role) = self.roles.get(&id) else {
            return;
        };
        let mut constraint = role.admitted.clone();
        if let Some(&next) = role.lines.get(role.n_said) {
            let is_admitted = !constraint.forbidden.contains(&next)
                && constraint.allowed.is_none_or(|set| set.contains(next));
            if !is_admitted {
                self.notices.push(format!(
                    "the server does not admit token {next}, number {} of the lines",
                    role.n_said
                ));
                return;
            }
            let mut only = TokenSet::empty(self.tokenizer.n_vocab());
            only.insert(next);
            constraint.allowed = Some(Arc::new(only));
        }
        self.scheduler.constrain(id, constraint);
    }
}

impl TokenSource for Actor {
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        let text = self.tokenizer.decode(&request.tokens);
        let text = text.expect("a prompt holds tokens of the vocabulary");
        let mut lines = self.tokenizer.encode(&(self.play)(&text));
        lines.push(self.tokenizer.protocol().eos);
        let id = self.scheduler.submit(request)?;
        let role = Role {
            lines,
            n_said: 0,
            admitted: Constraint::default(),
        };
        self.roles.insert(id, role);
        self.prompt(id);
        Ok(id)
    }

    fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        if let Some(role) = self.roles.get_mut(&id) {
            role.admitted = constraint;
        }
        self.prompt(id);
    }

    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
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
        let events = self.scheduler.tick()?;
        for event in &events {
            match event {
                Event::Token { id, .. } => {
                    if let Some(role) = self.roles.get_mut(id) {
                        role.n_said += 1;
                    }
                    self.prompt(*id);
                }
                Event::Finished { id, .. } => {
                    self.roles.remove(id);
                }
                Event::Prefill { .. } => {}
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

    fn save_all(&mut self) {
        self.scheduler.save_all();
    }
}
