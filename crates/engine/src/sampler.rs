//! From logits to a token.
//!
//! Penalties and biases change the logits; temperature scales them; then the
//! filters keep a part of the tempered distribution: the `top_k` largest, of
//! those the ones at least `min_p` times as likely as the likeliest, of those
//! the shortest prefix whose probability reaches `top_p`. What is left is
//! renormalised and drawn from. Temperature 0 takes the largest logit.

use std::collections::HashMap;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

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
}

/// Keeps the `k` ids with the largest values, largest first, lowest id first of
/// equal ones.
fn keep_largest(ids: &mut Vec<u32>, k: usize, value: impl Fn(u32) -> f32) {
    let order = |a: &u32, b: &u32| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if k < ids.len() {
        if k > 0 {
            ids.select_nth_unstable_by(k - 1, order);
        }
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    random: ChaCha8Rng,
    /// Times each token was generated.
    n_generated: HashMap<u32, u32>,
    /// Tokens of the prompt, kept only when a repetition penalty needs them.
    prompt: HashMap<u32, ()>,
    logits: Vec<f32>,
    ids: Vec<u32>,
}

impl Sampler {
    /// A sampler for a sequence with this prompt; the options are valid.
    pub fn new(options: SamplingOptions, prompt: &[u32]) -> Sampler {
        let random = match options.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => ChaCha8Rng::from_os_rng(),
        };
        let prompt = if options.repetition_penalty == 1.0 {
            HashMap::new()
        } else {
            prompt.iter().map(|token| (*token, ())).collect()
        };
        Sampler {
            options,
            random,
            n_generated: HashMap::new(),
            prompt,
            logits: Vec::new(),
            ids: Vec::new(),
        }
    }

    /// Chooses a token from one row of logits and remembers it.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.sample_within(logits, &Constraint::default())
    }

    /// The same among the tokens that a constraint admits. A constraint that
    /// admits none is as good as one that admits all.
    pub fn sample_within(&mut self, logits: &[f32], constraint: &Constraint) -> u32 {
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
        let token = if constraint.greedy || self.options.temperature == 0.0 {
            argmax(&self.logits)
        } else {
            self.draw()
        };
        self.accept(token);
        token
    }

    /// Remembers a token that was not sampled but put into the reply.
    pub fn accept(&mut self, token: u32) {
        *self.n_generated.entry(token).or_default() += 1;
    }

    fn penalise(&mut self) {
        let o = &self.options;
        if o.repetition_penalty != 1.0 {
            let seen = self.prompt.keys().chain(
                self.n_generated
                    .keys()
                    .filter(|token| !self.prompt.contains_key(token)),
            );
            for token in seen {
                let l = &mut self.logits[*token as usize];
                *l = if *l > 0.0 {
                    *l / o.repetition_penalty
                } else {
                    *l * o.repetition_penalty
                };
            }
        }
        if o.presence_penalty != 0.0 || o.frequency_penalty != 0.0 {
            for (token, n) in &self.n_generated {
                self.logits[*token as usize] -=
                    o.presence_penalty + o.frequency_penalty * *n as f32;
            }
        }
        for (token, bias) in &o.logit_bias {
            let l = &mut self.logits[*token as usize];
            *l = if *bias <= -100.0 {
                f32::NEG_INFINITY
            } else {
                *l + bias
            };
        }
    }

    fn draw(&mut self) -> u32 {
        let o = &self.options;
        let logits = &self.logits;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // Every token is forbidden: the largest of equals is as good as any.
        if max == f32::NEG_INFINITY {
            return argmax(logits);
        }
        let weight = |id: u32| f64::from((logits[id as usize] - max) / o.temperature).exp();

        self.ids.clear();
        self.ids.extend(0..logits.len() as u32);
        let unfiltered = o.top_k == 0 && o.min_p == 0.0 && o.top_p >= 1.0;
        if !unfiltered {
            // `min_p` relates to the likeliest token, whose weight is 1, and
            // does not depend on what the other filters keep: applying it first
            // leaves little to sort.
            let min_p = f64::from(o.min_p);
            self.ids.retain(|id| weight(*id) >= min_p);
            let k = if o.top_k == 0 {
                self.ids.len()
            } else {
                o.top_k
            };
            keep_largest(&mut self.ids, k, |id| logits[id as usize]);
            if o.top_p < 1.0 {
                // `top_p` is a share of what `top_k` keeps, `min_p` not yet
                // applied to it.
                let total = if o.top_k == 0 {
                    (0..logits.len() as u32).map(weight).sum()
                } else {
                    let mut all: Vec<u32> = (0..logits.len() as u32).collect();
                    keep_largest(&mut all, o.top_k, |id| logits[id as usize]);
                    all.iter().map(|id| weight(*id)).sum::<f64>()
                };
                let mut cumulative = 0.0;
                let enough = self.ids.iter().position(|id| {
                    cumulative += weight(*id);
                    cumulative >= f64::from(o.top_p) * total
                });
                if let Some(last) = enough {
                    self.ids.truncate(last + 1);
                }
            }
        }
        let total: f64 = self.ids.iter().map(|id| weight(*id)).sum();
        let unit = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * total;
        for id in &self.ids {
            left -= weight(*id);
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding can leave a hair: the last token that can be drawn.
        *self
            .ids
            .iter()
            .rev()
            .find(|id| weight(**id) > 0.0)
            .expect("the likeliest token is never filtered")
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Logits of the probabilities 0.5, 0.25, 0.15, 0.1 in the order of ids 3, 1, 0, 2.
    fn logits() -> Vec<f32> {
        [0.15f32, 0.25, 0.1, 0.5].map(f32::ln).to_vec()
    }

    fn drawn(options: SamplingOptions) -> Vec<f64> {
        let n = 20_000;
        let mut counts = vec![0.0; 4];
        for seed in 0..n {
            let options = SamplingOptions {
                seed: Some(seed),
                ..options.clone()
            };
            counts[Sampler::new(options, &[]).sample(&logits()) as usize] += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn filters_keep_what_they_say_and_renormalise() {
        let open = SamplingOptions {
            min_p: 0.0,
            ..SamplingOptions::default()
        };
        let cases = [
            ("no filter", open.clone(), [0.15, 0.25, 0.1, 0.5]),
            (
                "top_k 2",
                SamplingOptions {
                    top_k: 2,
                    ..open.clone()
                },
                [0.0, 1.0 / 3.0, 0.0, 2.0 / 3.0],
            ),
            (
                "top_p reached exactly",
                SamplingOptions {
                    top_p: 0.5,
                    ..open.clone()
                },
                [0.0, 0.0, 0.0, 1.0],
            ),
            (
                "top_p passed",
                SamplingOptions {
                    top_p: 0.51,
                    ..open.clone()
                },
                [0.0, 1.0 / 3.0, 0.0, 2.0 / 3.0],
            ),
            (
                "min_p 0.25",
                SamplingOptions {
                    min_p: 0.25,
                    ..open.clone()
                },
                [0.15 / 0.9, 0.25 / 0.9, 0.0, 0.5 / 0.9],
            ),
            (
                "top_p of top_k",
                SamplingOptions {
                    top_k: 2,
                    top_p: 0.6,
                    ..open.clone()
                },
                [0.0, 0.0, 0.0, 1.0],
            ),
            (
                "a forbidden token",
                SamplingOptions {
                    logit_bias: vec![(3, -100.0)],
                    ..open.clone()
                },
                [0.3, 0.5, 0.2, 0.0],
            ),
        ];
        for (name, options, expected) in cases {
            for (id, (found, expected)) in drawn(options).iter().zip(expected).enumerate() {
                assert!(
                    (found - expected).abs() < 0.015,
                    "{name}: token {id} drawn {found}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_the_largest() {
        let mut sampler = Sampler::new(SamplingOptions::greedy(), &[]);
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0]), 1);
    }

    #[test]
    fn penalties_count_what_was_generated_and_what_was_in_the_prompt() {
        let options = SamplingOptions {
            presence_penalty: 0.5,
            frequency_penalty: 0.4,
            ..SamplingOptions::greedy()
        };
        let mut sampler = Sampler::new(options, &[0]);
        let logits = [1.0, 0.5, -1.0];
        // Token 0 costs 0.9 once it was generated, and 0.4 more every time.
        assert_eq!(
            [
                sampler.sample(&logits),
                sampler.sample(&logits),
                sampler.sample(&logits)
            ],
            [0, 1, 0]
        );

        let options = SamplingOptions {
            repetition_penalty: 3.0,
            ..SamplingOptions::greedy()
        };
        let mut sampler = Sampler::new(options, &[0]);
        assert_eq!(sampler.sample(&logits), 1);
    }

    #[test]
    fn options_out_of_range_are_named() {
        let with = |change: fn(&mut SamplingOptions)| {
            let mut options = SamplingOptions::default();
            change(&mut options);
            options.validate(10).map_err(|e| e.name)
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|o| o.temperature = 2.1), Err("temperature"));
        assert_eq!(with(|o| o.temperature = f32::NAN), Err("temperature"));
        assert_eq!(with(|o| o.top_p = 0.0), Err("top_p"));
        assert_eq!(with(|o| o.min_p = -0.1), Err("min_p"));
        assert_eq!(
            with(|o| o.repetition_penalty = 0.0),
            Err("repetition_penalty")
        );
        assert_eq!(with(|o| o.logit_bias = vec![(10, 1.0)]), Err("logit_bias"));
    }

    #[test]
    fn logprobs_are_those_of_the_unchanged_distribution() {
        let found = TokenLogprobs::new(&logits(), 0, 2);
        assert!((found.logprob - 0.15f32.ln()).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 1]);
        assert!((found.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn the_same_seed_draws_the_same_tokens(seed: u64, values in prop::collection::vec(-20f32..20.0, 1..300)) {
            let options = SamplingOptions { seed: Some(seed), top_p: 0.9, top_k: 40, ..SamplingOptions::default() };
            let draw = || {
                let mut sampler = Sampler::new(options.clone(), &[]);
                (0..8).map(|_| sampler.sample(&values)).collect::<Vec<_>>()
            };
            let first = draw();
            prop_assert_eq!(&first, &draw());
            prop_assert!(first.iter().all(|t| (*t as usize) < values.len()));
        }
    }
}
