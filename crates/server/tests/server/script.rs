//! A source of tokens that says what a test wrote down, with slots that behave like the
//! scheduler's: they keep their tokens, and a prompt computes only what its slot does not hold.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ds4_conformance::speaking_model;
use ds4_engine::{
    Constraint, Event, FinishReason, Request, RequestError, Reuse, SequenceId, SlotUse, StepError,
    Timings, TokenLogprobs,
};
use ds4_server::worker::TokenSource;
use ds4_text::Tokenizer;

/// A tokenizer in which every byte is a token, and so are the markers.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let (tokens, types) = speaking_model::vocabulary();
    let merges: [&str; 0] = [];
    Arc::new(
        Tokenizer::from_gguf_parts("gpt2", "joyai-llm", tokens, &types, merges)
            .expect("a tokenizer"),
    )
}

/// The same with tokens that reach over the ends of tags, as a trained vocabulary has them.
pub(crate) fn tokenizer_with_long_tokens() -> Arc<Tokenizer> {
    let (mut tokens, mut types) = speaking_model::vocabulary();
    // `Ċ` is a line break and `Ġ` a blank.
    let long = [
        "\">",
        "\">Ċ",
        "\">ĊĊ",
        "\"></",
        "</",
        ")</",
        "\"</",
        "}</",
        ">Ċ",
        ">Ċ<",
        "Ġstring",
        "=\"",
        "\"true",
        "\"false",
        "true",
        "invoke",
        "parameter",
        "tool",
        "_calls",
        "{\"",
        "\":",
        "\":Ġ\"",
        "\",",
        "\"]",
        "}]",
        "[]",
        "ï½ľ",
        "12",
        "null",
        "Ġ\"",
        "a<",
        "</ï",
    ];
    tokens.extend(long.map(str::to_owned));
    types.extend([1; 32]);
    let merges: [&str; 0] = [];
    Arc::new(
        Tokenizer::from_gguf_parts("gpt2", "joyai-llm", tokens, &types, merges)
            .expect("a tokenizer"),
    )
}

/// One reply written down.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// What the model says, before the end-of-sentence token.
    pub(crate) text: String,
    /// Panics instead of saying the token of this number.
    pub(crate) panics_at: Option<usize>,
    /// Fails the step that would say the token of this number.
    pub(crate) fails_at: Option<usize>,
    /// Has no finite logits for the token of this number.
    pub(crate) not_finite_at: Option<usize>,
    /// Never ends: the last token is said again and again.
    pub(crate) endless: bool,
}

impl From<&str> for Script {
    fn from(text: &str) -> Script {
        Script {
            text: text.to_owned(),
            panics_at: None,
            fails_at: None,
            not_finite_at: None,
            endless: false,
        }
    }
}

/// What a test sees of the source while it runs.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Prompts in the order in which they got a slot: tokens, and of them those not computed.
    pub(crate) prompts: Vec<(Vec<u32>, usize)>,
    /// Prompt tokens computed.
    pub(crate) n_prefilled: usize,
    /// Tokens said.
    pub(crate) n_decoded: usize,
    /// Steps.
    pub(crate) n_ticks: usize,
    /// Constraints, in the order in which they were set.
    pub(crate) constraints: Vec<Constraint>,
    /// Tokens put behind others.
    pub(crate) forced: Vec<u32>,
}

/// How a source behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    pub(crate) n_slots: usize,
    pub(crate) context: usize,
    /// Prompt tokens of a step.
    pub(crate) chunk: usize,
    /// Time that a step takes.
    pub(crate) tick: Duration,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            n_slots: 2,
            context: 4096,
            chunk: 512,
            tick: Duration::ZERO,
        }
    }
}

struct Sequence {
    id: SequenceId,
    slot: usize,
    request: Request,
    script: Script,
    said: VecDeque<u32>,
    n_said: usize,
    n_done: usize,
    n_decoded: usize,
    reuse: Reuse,
}

pub(crate) struct ScriptedSource {
    tokenizer: Arc<Tokenizer>,
    behaviour: Behaviour,
    scripts: Arc<Mutex<VecDeque<Script>>>,
    seen: Arc<Mutex<Seen>>,
    slots: Vec<Vec<u32>>,
    waiting: VecDeque<(SequenceId, Request)>,
    running: Vec<Sequence>,
    reports: Vec<Event>,
    next_id: u64,
}

impl ScriptedSource {
    /// A source that gives the scripts to the requests in the order in which they get a slot.
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        behaviour: Behaviour,
        scripts: Arc<Mutex<VecDeque<Script>>>,
        seen: Arc<Mutex<Seen>>,
    ) -> ScriptedSource {
        ScriptedSource {
            slots: vec![Vec::new(); behaviour.n_slots],
            tokenizer,
            behaviour,
            scripts,
            seen,
            waiting: VecDeque::new(),
            running: Vec::new(),
            reports: Vec::new(),
            next_id: 0,
        }
    }

    fn admit(&mut self, events: &mut Vec<Event>) {
        while let Some((_, request)) = self.waiting.front() {
            let shared = |slot: usize| {
                let pairs = self.slots[slot].iter().zip(&request.tokens);
                pairs.take_while(|(a, b)| a == b).count()
            };
            let idle = (0..self.slots.len())
                .filter(|slot| self.running.iter().all(|s| s.slot != *slot))
                .max_by_key(|slot| (shared(*slot), std::cmp::Reverse(*slot)));
            let Some(slot) = idle else { return };
            let n_shared = shared(slot);
            let (id, request) = self.waiting.pop_front().expect("just seen");
            let n_cached = n_shared.min(request.tokens.len() - 1);
            let held_next = self.slots[slot][n_shared..].iter().take(8);
            let reuse = Reuse {
                slot,
                from: slot,
                n_shared,
                n_cached,
                n_held: self.slots[slot].len(),
                held_next: held_next.copied().collect(),
                ..Reuse::default()
            };
            self.slots[slot].truncate(n_cached);
            let script = self.scripts.lock().unwrap().pop_front();
            let script = script.unwrap_or_else(|| "no script is left".into());
            self.seen
                .lock()
                .unwrap()
                .prompts
                .push((request.tokens.clone(), n_cached));
            events.push(Event::Prefill {
                id,
                n_done: n_cached,
                n_total: request.tokens.len(),
                n_cached,
            });
            self.running.push(Sequence {
                id,
                slot,
                said: self.tokenizer.encode(&script.text).into(),
                script,
                request,
                n_said: 0,
                n_done: n_cached,
                n_decoded: 0,
                reuse,
            });
        }
    }
}

impl TokenSource for ScriptedSource {
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        if request.tokens.len() >= self.behaviour.context {
            return Err(RequestError::PromptTooLong {
                found: request.tokens.len(),
                context: self.behaviour.context,
            });
        }
        request.sampling.validate(self.tokenizer.n_vocab())?;
        self.next_id += 1;
        let id = SequenceId(self.next_id);
        self.waiting.push_back((id, request));
        Ok(id)
    }

    fn constrain(&mut self, _: SequenceId, constraint: Constraint) {
        self.seen.lock().unwrap().constraints.push(constraint);
    }

    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        let sequence = self.running.iter_mut().find(|s| s.id == id);
        let sequence = sequence.expect("only running sequences are forced");
        sequence.n_decoded += tokens.len();
        self.slots[sequence.slot].extend_from_slice(tokens);
        self.seen.lock().unwrap().forced.extend_from_slice(tokens);
    }

    fn cancel(&mut self, id: SequenceId) {
        let n_before = self.waiting.len() + self.running.len();
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.running.retain(|s| s.id != id);
        if self.waiting.len() + self.running.len() < n_before {
            self.reports.push(Event::Finished {
                id,
                reason: FinishReason::Cancelled,
                timings: Timings::default(),
            });
        }
    }

    fn contains(&self, id: SequenceId) -> bool {
        self.running.iter().any(|s| s.id == id) || self.waiting.iter().any(|(w, _)| *w == id)
    }

    fn reuse(&self, id: SequenceId) -> Option<Reuse> {
        let running = self.running.iter().find(|s| s.id == id);
        running.map(|s| s.reuse.clone())
    }

    fn slots(&self) -> Vec<SlotUse> {
        let sequence = |slot| self.running.iter().find(|s| s.slot == slot);
        (0..self.slots.len())
            .map(|slot| SlotUse {
                n_tokens: self.slots[slot].len(),
                sequence: sequence(slot).map(|s| s.id),
                n_decoded: sequence(slot).map_or(0, |s| s.n_decoded),
            })
            .collect()
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.reports.is_empty()
    }

    fn tick(&mut self) -> Result<Vec<Event>, StepError> {
        std::thread::sleep(self.behaviour.tick);
        let mut events = std::mem::take(&mut self.reports);
        self.admit(&mut events);
        self.seen.lock().unwrap().n_ticks += 1;
        let eos = self.tokenizer.protocol().eos;
        let mut ended = Vec::new();
        let mut failed = None;
        for sequence in &mut self.running {
            let id = sequence.id;
            let n_prompt = sequence.request.tokens.len();
            if sequence.n_done < n_prompt {
                let end = n_prompt.min(sequence.n_done + self.behaviour.chunk);
                let new = &sequence.request.tokens[sequence.n_done..end];
                self.slots[sequence.slot].extend_from_slice(new);
                self.seen.lock().unwrap().n_prefilled += new.len();
                sequence.n_done = end;
                events.push(Event::Prefill {
                    id,
                    n_done: end,
                    n_total: n_prompt,
                    n_cached: sequence.reuse.n_cached,
                });
                if end < n_prompt {
                    continue;
                }
            }
            let at = sequence.n_said;
            if sequence.script.panics_at == Some(at) {
                panic!("the script says so");
            }
            if sequence.script.fails_at == Some(at) {
                failed = Some(id);
                continue;
            }
            let next = match sequence.said.pop_front() {
                Some(token) => {
                    if sequence.script.endless && sequence.said.is_empty() {
                        sequence.said.push_back(token);
                    }
                    token
                }
                None => eos,
            };
            let reason = if sequence.script.not_finite_at == Some(at) {
                Some(FinishReason::NotFinite)
            } else if sequence.n_decoded >= sequence.request.max_tokens {
                Some(FinishReason::Length)
            } else if n_prompt + sequence.n_decoded >= self.behaviour.context {
                Some(FinishReason::ContextFull)
            } else if sequence.request.stop_tokens.contains(&next) {
                Some(FinishReason::Stop)
            } else {
                sequence.n_said += 1;
                sequence.n_decoded += 1;
                self.slots[sequence.slot].push(next);
                self.seen.lock().unwrap().n_decoded += 1;
                events.push(Event::Token {
                    id,
                    token: next,
                    logprobs: sequence.request.n_logprobs.map(|n| TokenLogprobs {
                        logprob: -0.5,
                        top: vec![(next, -0.5); n],
                    }),
                });
                (sequence.n_decoded >= sequence.request.max_tokens).then_some(FinishReason::Length)
            };
            if let Some(reason) = reason {
                ended.push(id);
                events.push(Event::Finished {
                    id,
                    reason,
                    timings: Timings::default(),
                });
            }
        }
        self.running.retain(|s| !ended.contains(&s.id));
        if let Some(id) = failed {
            self.running.retain(|s| s.id != id);
            self.reports = events;
            return Err(StepError::TooLarge {
                what: "scripted failures",
                found: 1,
                limit: 0,
            });
        }
        Ok(events)
    }

    fn reset(&mut self) {
        self.waiting.clear();
        self.running.clear();
        self.reports.clear();
        self.slots.iter_mut().for_each(Vec::clear);
    }
}
