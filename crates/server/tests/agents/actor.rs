//! A source of tokens that computes like any other and says what is written down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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
        let mut constraint = Constraint::default();
        if let Some(&next) = role.lines.get(role.n_said) {
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
        let role = Role { lines, n_said: 0 };
        self.roles.insert(id, role);
        self.prompt(id);
        Ok(id)
    }

    fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        let next = self.roles.get(&id).and_then(|r| r.lines.get(r.n_said));
        let refused = next.filter(|next| {
            let allowed = constraint.allowed.as_ref();
            constraint.forbidden.contains(next) || allowed.is_some_and(|set| !set.contains(**next))
        });
        match refused {
            None => self.prompt(id),
            Some(next) => {
                let notice = format!("the server does not admit token {next} of the lines");
                self.notices.push(notice);
                self.scheduler.constrain(id, constraint);
            }
        }
    }

    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        // What the server says for the model is no line any more.
        if let Some(role) = self.roles.get_mut(&id)
            && role.lines[role.n_said..].starts_with(tokens)
        {
            role.n_said += tokens.len();
        }
        self.scheduler.force(id, tokens);
        self.prompt(id);
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

    fn save_idle(&mut self) -> Option<Duration> {
        TokenSource::save_idle(&mut self.scheduler)
    }

    fn save_all(&mut self) {
        self.scheduler.save_all();
    }
}
