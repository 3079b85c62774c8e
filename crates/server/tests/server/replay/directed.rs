//! The real scheduler, told what to say: every token of a reply is the script's next one, chosen
//! by narrowing what the sequence may say. Everything else is computed: prompts, KV state, its
//! store and its reuse.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use ds4_engine::{
    Constraint, Event, Request, RequestError, Reuse, Scheduler, SequenceId, SlotUse, StepError,
    TokenSet,
};
use ds4_server::worker::TokenSource;
use ds4_text::Tokenizer;

/// What the model is to say in one reply.
#[derive(Clone, Debug)]
pub(super) enum Line {
    /// These tokens, then the end-of-sentence token.
    Tokens(Vec<u32>),
    /// What it likes.
    Anything,
}

/// What a request was, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Take {
    pub(super) prompt: Vec<u32>,
    /// Prompt tokens that were not computed.
    pub(super) n_cached: usize,
    /// Tokens said.
    pub(super) said: Vec<u32>,
}

/// The script and what was made of it, shared with the test.
#[derive(Default)]
pub(super) struct Stage {
    /// Lines of the requests to come, in order.
    pub(super) lines: VecDeque<Line>,
    /// Requests so far, in the order in which they came.
    pub(super) takes: Vec<Take>,
}

struct Actor {
    /// Its number among the takes.
    take: usize,
    rest: Option<VecDeque<u32>>,
    /// What the worker asks for.
    wanted: Constraint,
}

pub(super) struct Directed {
    scheduler: Scheduler,
    tokenizer: Arc<Tokenizer>,
    stage: Arc<Mutex<Stage>>,
    actors: HashMap<SequenceId, Actor>,
}

impl Directed {
    pub(super) fn new(scheduler: Scheduler, stage: Arc<Mutex<Stage>>) -> Directed {
        let tokenizer = scheduler.engine().tokenizer().expect("a tokenizer");
        Directed {
            tokenizer: Arc::clone(tokenizer),
            scheduler,
            stage,
            actors: HashMap::new(),
        }
    }

    /// Narrows what a sequence may say to the script's next token.
    fn direct(&mut self, id: SequenceId) {
        let Some(actor) = self.actors.get(&id) else {
            return;
        };
        let wanted = actor.wanted.clone();
        let constraint = match &actor.rest {
            None => wanted,
            Some(rest) => {
                let eos = self.tokenizer.protocol().eos;
                let next = rest.front().copied().unwrap_or(eos);
                let allows = wanted.allowed.as_ref().is_none_or(|set| set.contains(next));
                if !allows || wanted.forbidden.contains(&next) {
                    let said = self.stage.lock().unwrap().takes[actor.take].said.clone();
                    panic!(
                        "the server does not let the model say {:?} after {:?}",
                        self.tokenizer.decode(&[next]),
                        self.tokenizer.decode(&said)
                    );
                }
                let mut only = TokenSet::empty(self.tokenizer.n_vocab());
                only.insert(next);
                Constraint {
                    greedy: true,
                    forbidden: Vec::new(),
                    allowed: Some(Arc::new(only)),
                }
            }
        };
        self.scheduler.constrain(id, constraint);
    }
}

impl TokenSource for Directed {
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        let prompt = request.tokens.clone();
        let id = self.scheduler.submit(request)?;
        let mut stage = self.stage.lock().unwrap();
        let line = stage.lines.pop_front().expect("a line for every request");
        stage.takes.push(Take {
            prompt,
            n_cached: 0,
            said: Vec::new(),
        });
        let actor = Actor {
            take: stage.takes.len() - 1,
            rest: match line {
                Line::Tokens(tokens) => Some(tokens.into()),
                Line::Anything => None,
            },
            wanted: Constraint::default(),
        };
        drop(stage);
        self.actors.insert(id, actor);
        self.direct(id);
        Ok(id)
    }

    fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.wanted = constraint;
        }
    }

    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        panic!("{id:?} is told to say {tokens:?}, and no script is");
    }

    fn cancel(&mut self, id: SequenceId) {
        self.actors.remove(&id);
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
        let all: Vec<SequenceId> = self.actors.keys().copied().collect();
        for id in all {
            self.direct(id);
        }
        let events = self.scheduler.tick()?;
        for event in &events {
            let mut stage = self.stage.lock().unwrap();
            match event {
                Event::Prefill { id, n_cached, .. } => {
                    let take = self.actors[id].take;
                    stage.takes[take].n_cached = *n_cached;
                }
                Event::Token { id, token, .. } => {
                    let actor = self.actors.get_mut(id).expect("an actor");
                    stage.takes[actor.take].said.push(*token);
                    if let Some(rest) = &mut actor.rest {
                        assert_eq!(rest.pop_front(), Some(*token));
                    }
                }
                Event::Finished { id, .. } => {
                    self.actors.remove(id);
                }
            }
        }
        Ok(events)
    }

    fn reset(&mut self) {
        self.scheduler.reset();
    }

    fn take_notices(&mut self) -> Vec<String> {
        self.scheduler.take_store_notices()
    }

    fn save_all(&mut self) {
        self.scheduler.save_all();
    }
}
