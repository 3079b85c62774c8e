//! What is asked of a scheduler.

use super::MAX_WAITING;
use crate::sampler::{SamplingError, SamplingOptions};

/// Names a sequence for as long as the scheduler lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One reply to be generated.
#[derive(Clone, Debug)]
pub struct Request {
    /// The whole prompt.
    pub tokens: Vec<u32>,
    /// Lengths of the prompt at which other conversations are likely to depart, in
    /// ascending order: the end of the system text and its tools, and of what a
    /// client puts before every first message. States there are kept for them.
    pub anchors: Vec<usize>,
    /// Length of the prompt before the last text of its user, which may come again as another;
    /// 0 without one. The state there is kept, and stored when the program ends.
    pub last_user: usize,
    /// Names the client's conversation, if it has a name: of slots that hold as much
    /// of a prompt, the conversation's own is taken, and a slot of another one is not
    /// cut back.
    pub affinity: Option<u64>,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the reply and are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Number of likeliest tokens to report for every generated one.
    pub n_logprobs: Option<usize>,
    /// The first token of the prompt whose logits are wanted, and those of all after it: they
    /// are for [`super::Scheduler::take_prompt_rows`]. What is kept is used up to there only.
    pub scored_from: Option<usize>,
    /// Whether it may go on from what is kept, and is kept itself. If not, all of it
    /// is computed, and its slot is emptied when it ends.
    pub use_cache: bool,
}

impl Default for Request {
    /// An empty prompt, and nothing to generate.
    fn default() -> Request {
        Request {
            tokens: Vec::new(),
            anchors: Vec::new(),
            last_user: 0,
            affinity: None,
            sampling: SamplingOptions::default(),
            max_tokens: 0,
            stop_tokens: Vec::new(),
            n_logprobs: None,
            scored_from: None,
            use_cache: true,
        }
    }
}

impl Request {
    /// The beginning of the prompt that may be found instead of computed, all but its last token.
    pub(super) fn findable(&self) -> &[u32] {
        let n = self.tokens.len();
        &self.tokens[..self.scored_from.map_or(n, |from| n.min(from + 1))]
    }
}

/// The logits of a token of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRow {
    /// The sequence.
    pub id: SequenceId,
    /// The token, by its place in the prompt.
    pub at: usize,
    /// `[n_vocab]`, of what follows it.
    pub logits: Vec<f32>,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nothing to continue.
    #[error("the prompt is empty, expected at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for a token.
    #[error(
        "the prompt has {found} tokens and the context holds {context}: shorten it or use a longer --ctx"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens of a slot.
        context: usize,
    },
    /// A token is outside the vocabulary.
    #[error("token id {token} is not in the vocabulary of {n_vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Vocabulary entries.
        n_vocab: usize,
    },
    /// A sampling option is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Too many requests wait already.
    #[error("{MAX_WAITING} requests are waiting for a slot; try again later")]
    QueueFull,
}
