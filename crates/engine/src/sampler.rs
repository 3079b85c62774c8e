//! From logits to a token.
//!
//! Penalties and biases change the logits; temperature scales them; then the
//! filters keep a part of the tempered distribution: the `top_k` largest, of
//! those the ones at least `min_p` times as likely as the likeliest, of those
//! the shortest prefix whose probability reaches `top_p`. What is left is
//! renormalised and drawn from. Temperature 0 takes the largest logit.

//!
//! A sampler first looks at the candidates that the device chose ([`Sampler::choose`]).
//! They decide when everything that the filters keep is among them, which is the rule;
//! otherwise it wants the whole row ([`Sampler::sample_within`]). Both draw from the same
//! tokens in the same order, so that a seed gives the same tokens either way but for the
//! last bit of a sum. No finite option makes a sampler fail; logits that are not finite do.

mod draw;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ds4_model::{Candidates, N_CANDIDATES, Wanted};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use draw::{Head, keep_largest};

/// How to choose tokens. The defaults are those of the server.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 to 2; 0 is greedy.
    pub temperature: f32,
    /// Tokens kept; 0 keeps all.
    pub top_k: usize,
    /// Probability kept, above 0 and up to 1.
    pub top_p: f32,
    /// Least probability relative to the likeliest token, 0 to 1.
    pub min_p: f32,
    /// Seed of the draw; `None` takes one from the system.
    pub seed: Option<u64>,
    /// Subtracted from the logit of every token generated before, -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted once for every time a token was generated before, -2 to 2.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen before,
    /// in the prompt too; above 0, 1 is none.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100; -100 forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.05,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

/// A sampling option is out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {found}, expected {expected}")]
pub struct SamplingError {
    /// The option.
    pub name: &'static str,
    /// Its value.
    pub found: String,
    /// What is accepted.
    pub expected: &'static str,
}

impl SamplingOptions {
    /// Greedy decoding.
    pub fn greedy() -> SamplingOptions {
        SamplingOptions {
            temperature: 0.0,
            ..SamplingOptions::default()
        }
    }

    /// Checks every option against its range; nothing is clamped.
    pub fn validate(&self, n_vocab: usize) -> Result<(), SamplingError> {
        let checks = [
            (
                "temperature",
                self.temperature,
                (0.0..=2.0).contains(&self.temperature),
                "0 to 2",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0, up to 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "0 to 1",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                (-2.0..=2.0).contains(&self.presence_penalty),
                "-2 to 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                (-2.0..=2.0).contains(&self.frequency_penalty),
                "-2 to 2",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "a positive number",
            ),
        ];
        for (name, found, accepted, expected) in checks {
            if !accepted {
                return Err(SamplingError {
                    name,
                    found: found.to_string(),
                    expected,
                });
            }
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= n_vocab || !(-100.0..=100.0).contains(&bias) {
                return Err(SamplingError {
                    name: "logit_bias",
                    found: format!("{token}: {bias}"),
                    expected: "a token of the vocabulary and -100 to 100",
                });
            }
        }
        Ok(())
    }
}

/// Tokens that may come next, one bit for each of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u32>,
}

impl TokenSet {
    /// No token of a vocabulary of this size.
    pub fn empty(n_vocab: usize) -> TokenSet {
        TokenSet {
            words: vec![0; n_vocab.div_ceil(32)],
        }
    }

    /// From bits: token `t` is bit `t % 32` of word `t / 32`.
    pub fn from_words(words: Vec<u32>) -> TokenSet {
        TokenSet { words }
    }

    /// Adds a token of the vocabulary.
    pub fn insert(&mut self, token: u32) {
        self.words[token as usize / 32] |= 1 << (token % 32);
    }

    /// Number of tokens in it.
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether a token is in it; one beyond the vocabulary is not.
    pub fn contains(&self, token: u32) -> bool {
        self.words
            .get(token as usize / 32)
            .is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// What a sequence may say next, beyond its sampling options: how the markup
/// of a protocol and a schema are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraint {
    /// Takes the likeliest token instead of drawing one.
    pub greedy: bool,
    /// Tokens that must not come.
    pub forbidden: Vec<u32>,
    /// Tokens of which one must come; `None` for all.
    pub allowed: Option<Arc<TokenSet>>,
}

/// A row of logits has one that is not a number, or infinite: the model or its file is
/// broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model's logits are not finite numbers: its file is damaged or its metadata absurd (`ds4 verify` looks)"
)]
pub struct NotFinite;

/// The model's own opinion of a token: natural-log probabilities at
/// temperature 1, before biases, penalties and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Reads them off one row of logits.
    pub fn new(logits: &[f32], token: u32, n_top: usize) -> TokenLogprobs {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |l: f32| (f64::from(l) - log_sum) as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        keep_largest(&mut ids, n_top.min(logits.len()), |id| logits[id as usize]);
        TokenLogprobs {
            logprob: logprob(logits[token as usize]),
            top: ids
                .iter()
                .map(|id| (*id, logprob(logits[*id as usize])))
                .collect(),
        }
    }

    /// The same from candidates; `None` when they do not have all that is asked for.
    pub fn of_candidates(
        candidates: &Candidates<'_>,
        n_vocab: usize,
        token: u32,
        n_top: usize,
    ) -> Option<TokenLogprobs> {
        let n_top = n_top.min(n_vocab);
        let at = candidates.ids.iter().position(|id| *id == token)?;
        let known = candidates.ids.iter().zip(candidates.values);
        let top: Vec<(u32, f32)> = known
            .take(n_top)
            .map(|(id, value)| (*id, value - candidates.lse))
            .collect();
        (top.len() == n_top).then(|| TokenLogprobs {
            logprob: candidates.values[at] - candidates.lse,
            top,
        })
    }
}

/// Least temperature at which the device is asked for a log-sum-exp.
const MIN_TEMPERATURE: f32 = 1e-2;

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    random: ChaCha8Rng,
    /// Times each token was generated.
    n_generated: HashMap<u32, u32>,
    /// Tokens of the prompt, kept only when a repetition penalty needs them.
    prompt: HashSet<u32>,
    logits: Vec<f32>,
    ids: Vec<u32>,
    head: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler for a sequence with this prompt; the options are valid.
    pub fn new(options: SamplingOptions, prompt: &[u32]) -> Sampler {
        let random = match options.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => ChaCha8Rng::from_os_rng(),
        };
        let prompt = match options.repetition_penalty {
            1.0 => HashSet::new(),
            _ => prompt.iter().copied().collect(),
        };
        Sampler {
            options,
            random,
            n_generated: HashMap::new(),
            prompt,
            logits: Vec::new(),
            ids: Vec::new(),
            head: Vec::new(),
        }
    }

    /// What it wants of a step, when as many likeliest tokens are to be reported.
    pub fn wanted(&self, n_logprobs: Option<usize>) -> Wanted {
        let many = n_logprobs.is_some_and(|n| n > N_CANDIDATES);
        match self.options.repetition_penalty != 1.0 || many {
            // What was seen before may lie anywhere.
            true => Wanted::Logits,
            false => Wanted::Candidates {
                temperature: match self.options.temperature {
                    0.0 => 1.0,
                    t => t.max(MIN_TEMPERATURE),
                },
            },
        }
    }

    /// Chooses a token from the candidates among `n_vocab` and remembers it; `None` when
    /// they do not decide, and nothing is remembered.
    ///
    /// # Errors
    /// A logit is not finite.
    pub fn choose(
        &mut self,
        candidates: &Candidates<'_>,
        n_vocab: usize,
        constraint: &Constraint,
    ) -> Result<Option<u32>, NotFinite> {
        if !candidates.lse.is_finite() {
            return Err(NotFinite);
        }
        let Some(mut known) = self.known(candidates, n_vocab, constraint) else {
            return Ok(None);
        };
        let greedy = constraint.greedy || self.options.temperature == 0.0;
        let mut random = self.random.clone();
        let token = match greedy {
            true => known.tokens.first().map(|(id, _)| *id),
            false => known.draw(&self.options, || unit(&mut random)),
        };
        self.head = known.take();
        if let Some(token) = token {
            self.random = random;
            self.accept(token);
        }
        Ok(token)
    }

    /// Chooses a token from one row of logits and remembers it.
    ///
    /// # Errors
    /// A logit is not finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NotFinite> {
        self.sample_within(logits, &Constraint::default())
    }

    /// The same among the tokens that a constraint admits. A constraint that
    /// admits none is as good as one that admits all.
    ///
    /// # Errors
    /// A logit is not finite.
    pub fn sample_within(
        &mut self,
        logits: &[f32],
        constraint: &Constraint,
    ) -> Result<u32, NotFinite> {
        // A product with zero is zero, or NaN of what is not finite.
        let zero: f32 = logits.iter().map(|l| l * 0.0).sum();
        if zero.is_nan() {
            return Err(NotFinite);
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.penalise();
        for token in &constraint.forbidden {
            if let Some(l) = self.logits.get_mut(*token as usize) {
                *l = f32::NEG_INFINITY;
            }
        }
        if let Some(allowed) = &constraint.allowed {
            for (token, l) in self.logits.iter_mut().enumerate() {
                if !allowed.contains(token as u32) {
                    *l = f32::NEG_INFINITY;
                }
            }
        }
        let best = argmax(&self.logits);
        let greedy = constraint.greedy || self.options.temperature == 0.0;
        // When every token is forbidden the first of equals is as good as any.
        let token = if greedy || self.logits[best as usize] == f32::NEG_INFINITY {
            best
        } else {
            let unit = unit(&mut self.random);
            draw::draw(&self.logits, &self.options, unit, &mut self.ids)
        };
        self.accept(token);
        Ok(token)
    }

    /// Remembers a token that was not sampled but put into the reply.
    pub fn accept(&mut self, token: u32) {
        *self.n_generated.entry(token).or_default() += 1;
    }

    /// What penalties and biases make of a logit.
    fn adjusted(&self, token: u32, logit: f32) -> f32 {
        let o = &self.options;
        let n = self.n_generated.get(&token).copied().unwrap_or(0);
        let mut l = logit;
        if o.repetition_penalty != 1.0 && (n > 0 || self.prompt.contains(&token)) {
            l = match l > 0.0 {
                true => l / o.repetition_penalty,
                false => l * o.repetition_penalty,
            };
        }
        if n > 0 {
            l -= o.presence_penalty + o.frequency_penalty * n as f32;
        }
        for (biased, bias) in &o.logit_bias {
            if *biased == token {
                l = match *bias <= -100.0 {
                    true => return f32::NEG_INFINITY,
                    false => l + bias,
                };
            }
        }
        // An absurd penalty makes a logit very large or small, and still a number.
        l.clamp(f32::MIN, f32::MAX)
    }

    /// Tokens whose logits are not what the model said.
    fn touched(&self) -> impl Iterator<Item = u32> {
        let o = &self.options;
        let repeats = o.repetition_penalty != 1.0;
        let penalises = repeats || o.presence_penalty != 0.0 || o.frequency_penalty != 0.0;
        let generated = self.n_generated.keys().filter(move |_| penalises);
        let prompt = self.prompt.iter().filter(move |_| repeats);
        let biased = o.logit_bias.iter().map(|(token, _)| *token);
        generated.chain(prompt).copied().chain(biased)
    }

    fn penalise(&mut self) {
        let touched: HashSet<u32> = self.touched().collect();
        for token in touched {
            let l = self.logits[token as usize];
            self.logits[token as usize] = self.adjusted(token, l);
        }
    }

    /// What candidates say of the adjusted logits; `None` when a token that is not among
    /// them may be among the largest.
    fn known(
        &mut self,
        candidates: &Candidates<'_>,
        n_vocab: usize,
        constraint: &Constraint,
    ) -> Option<Head> {
        let complete = candidates.ids.len() >= n_vocab;
        let temperature = self.options.temperature;
        let touched: HashSet<u32> = self.touched().collect();
        let n_unseen = match complete {
            true => 0,
            false => {
                let unseen = touched.iter().filter(|t| !candidates.ids.contains(t));
                // A penalty that lowers leaves what was small small.
                let raises = |token: u32| self.adjusted(token, -1.0) > -1.0;
                let mut n = 0;
                for token in unseen {
                    if raises(*token) || self.adjusted(*token, 1.0) > 1.0 {
                        return None;
                    }
                    n += 1;
                }
                n
            }
        };
        let floor = match complete {
            true => f32::NEG_INFINITY,
            false => *candidates.values.last()?,
        };
        // Of all tempered weights, relative to the largest candidate.
        let max = f64::from(*candidates.values.first()?);
        let weight = |l: f32| ((f64::from(l) - max) / f64::from(temperature)).exp();
        let exact_sum = temperature >= MIN_TEMPERATURE && n_unseen == 0;
        let mut total = (exact_sum && constraint.allowed.is_none()).then(|| {
            (f64::from(candidates.lse_at_temperature) - max / f64::from(temperature)).exp()
        });
        let mut tokens = std::mem::take(&mut self.head);
        tokens.clear();
        for (id, value) in candidates.ids.iter().zip(candidates.values) {
            let mut l = match touched.contains(id) {
                true => self.adjusted(*id, *value),
                false => *value,
            };
            let admitted = constraint.allowed.as_ref().is_none_or(|a| a.contains(*id));
            if !admitted || constraint.forbidden.contains(id) {
                l = f32::NEG_INFINITY;
            }
            if l != *value
                && let Some(total) = &mut total
            {
                *total += weight(l) - weight(*value);
            }
            if l > floor || (complete && l > f32::NEG_INFINITY) {
                tokens.push((*id, l));
            }
        }
        if !constraint.forbidden.is_empty() && !complete {
            let unseen = |t: &u32| !candidates.ids.contains(t);
            if constraint.forbidden.iter().any(unseen) {
                total = None;
            }
        }
        tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        // Relative to the largest that is left.
        if let (Some((_, best)), Some(total)) = (tokens.first(), &mut total) {
            *total /= weight(*best);
        }
        Some(Head {
            tokens,
            floor,
            complete,
            total: total.filter(|t| t.is_finite()),
        })
    }
}

/// A number from 0 to 1, 1 excluded.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Index of the largest logit, the lowest of equal ones.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as u32
}
