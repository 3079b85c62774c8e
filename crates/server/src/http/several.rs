//! A reply of one choice or of several, as one object or one stream.

use std::time::Duration;

use serde_json::Value;

use crate::api::{Frame, Logprobs, join, together};
use crate::generation::{Finish, Outcome, ReplyEvent};

use super::generate::{Encoder, Shape};

/// The body of several choices that are not streamed. Every prompt has `n_choices` of them.
pub(super) fn complete(
    shape: &Shape,
    outcomes: &[Outcome],
    logprobs: &[Logprobs],
    n_choices: usize,
) -> Value {
    let each = outcomes.iter().zip(logprobs).enumerate();
    let bodies = each.map(|(i, (outcome, logprobs))| {
        let shape = shape.of_choice(i, n_choices);
        shape.complete(outcome, logprobs)
    });
    let bodies = bodies.collect();
    match together(outcomes, n_choices) {
        Some(together) => join(bodies, &together),
        None => Value::Null,
    }
}

/// Writes the events of every choice as they come, and one end behind all of them.
pub(super) struct Several {
    encoders: Vec<Encoder>,
    outcomes: Vec<Option<Outcome>>,
    n_choices: usize,
    ended: bool,
}

impl Several {
    /// Of `n` choices, of which every prompt has `n_choices`.
    pub(super) fn new(shape: &Shape, n: usize, n_choices: usize) -> Several {
        let encoders = match n {
            1 => vec![Encoder::new(shape)],
            n => (0..n)
                .map(|i| Encoder::new(&shape.of_choice(i, n_choices)))
                .collect(),
        };
        Several {
            encoders,
            outcomes: vec![None; n],
            n_choices,
            ended: false,
        }
    }

    /// Whether the stream has been written to its end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// A choice that is not over.
    pub(super) fn unfinished(&self) -> usize {
        let at = self.outcomes.iter().position(Option::is_none);
        at.unwrap_or_default()
    }

    /// What is sent with the headers.
    pub(super) fn open(&mut self) -> Vec<Frame> {
        self.encoders.iter_mut().flat_map(Encoder::open).collect()
    }

    /// What one event of a choice becomes.
    pub(super) fn event(&mut self, i: usize, event: &ReplyEvent) -> Vec<Frame> {
        if self.ended {
            return Vec::new();
        }
        let mut frames = self.encoders[i].event(event);
        match event {
            ReplyEvent::Failed(_) => self.ended = true,
            ReplyEvent::Finished(outcome) => {
                self.ended = outcome.finish == Finish::Cancelled;
                self.outcomes[i] = Some((**outcome).clone());
            }
            _ => {}
        }
        if !self.ended && self.outcomes.iter().all(Option::is_some) {
            self.ended = true;
            if self.outcomes.len() > 1 {
                let outcomes: Vec<Outcome> = self.outcomes.drain(..).flatten().collect();
                let together = together(&outcomes, self.n_choices);
                frames.extend(
                    together
                        .iter()
                        .flat_map(|all| self.encoders[0].close_all(all)),
                );
            }
        }
        frames
    }

    /// A sign of life.
    pub(super) fn keep_alive(&mut self, idle: Duration) -> Vec<Frame> {
        let i = self.unfinished();
        self.encoders[i].keep_alive(idle)
    }

    /// The object that a store keeps, once the stream is over.
    pub(super) fn stored(&self) -> Option<&Value> {
        self.encoders.first()?.stored()
    }
}
