//! What a scheduler says of what it did.

use std::time::Duration;

use super::SequenceId;
use crate::sampler::TokenLogprobs;
use crate::store::NotStored;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It sampled a stop token.
    Stop,
    /// It reached its limit of tokens.
    Length,
    /// Its slot is full.
    ContextFull,
    /// The caller gave it up.
    Cancelled,
    /// The model's logits were not finite numbers; see [`crate::NotFinite`].
    NotFinite,
}

/// Where the time of a sequence went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of them, tokens that were in the slot already.
    pub n_cached: usize,
    /// Of them, tokens that are in the slot now: fewer than all when it was given up.
    pub n_done: usize,
    /// Time of the steps that prefilled it.
    pub prefill: Duration,
    /// Tokens generated, the stop token not counted.
    pub n_decoded: usize,
    /// Time of the steps that decoded it.
    pub decode: Duration,
}

impl Timings {
    /// Tokens of the prompt that were computed: all of them, unless it was given up.
    pub fn n_prefilled(&self) -> usize {
        self.n_done.saturating_sub(self.n_cached)
    }

    /// Prompt tokens computed in a second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.n_prefilled(), self.prefill)
    }

    /// Tokens generated in a second. The first token comes out of the last
    /// prefill step, so it is not counted.
    pub fn decode_rate(&self) -> f64 {
        rate(self.n_decoded.saturating_sub(1), self.decode)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        n as f64 / time.as_secs_f64()
    }
}

/// What happened to a sequence in a tick.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A part of its prompt was computed.
    Prefill {
        /// The sequence.
        id: SequenceId,
        /// Prompt tokens in the slot now.
        n_done: usize,
        /// Prompt tokens.
        n_total: usize,
        /// Of those done, the ones that did not have to be computed.
        n_cached: usize,
    },
    /// A token was generated.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The token.
        token: u32,
        /// What the model thought of it, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// It ended.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
        /// Where its time went.
        timings: Timings,
    },
}

/// What a sequence found when it got its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Its slot.
    pub slot: usize,
    /// Whether nothing was looked for, as the request asked.
    pub ignored: bool,
    /// The slot that it went on from, or else the idle one that held the most of the
    /// prompt; what was cached is a copy when it is another than `slot`.
    pub from: usize,
    /// Tokens of the prompt that it held, in order from the first.
    pub n_shared: usize,
    /// Of them, tokens that did not have to be computed: a slot can be cut back
    /// only to certain lengths.
    pub n_cached: usize,
    /// Tokens that it held.
    pub n_held: usize,
    /// The first few of those that it held behind the shared ones.
    pub held_next: Vec<u32>,
    /// Tokens that were read from disk; 0 when what the slots held was as good.
    pub n_loaded: usize,
    /// Why the store had no more, if there is one.
    pub not_stored: Option<NotStored>,
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUse {
    /// Tokens in it.
    pub n_tokens: usize,
    /// The sequence that runs in it.
    pub sequence: Option<SequenceId>,
    /// Tokens that sequence has generated.
    pub n_decoded: usize,
}
