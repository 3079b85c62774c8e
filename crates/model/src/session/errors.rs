//! Why a session could not do what it was asked.

use crate::operands::BackendError;

/// Why a step was refused. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The slot is too short for these tokens.
    #[error(
        "the context is full: {len} tokens are in the slot and {n_new} more do not fit in {capacity}"
    )]
    ContextFull {
        /// Tokens in the slot.
        len: usize,
        /// Tokens to be added.
        n_new: usize,
        /// Tokens the slot can hold.
        capacity: usize,
    },
    /// A token is outside the vocabulary.
    #[error("token id {token} is not in the vocabulary of {n_vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Vocabulary entries.
        n_vocab: usize,
    },
    /// The batch is larger than the session was opened for.
    #[error("{what}: {found} in this step, at most {limit} in this session")]
    TooLarge {
        /// Rows, outputs or slots.
        what: &'static str,
        /// Found.
        found: usize,
        /// Accepted.
        limit: usize,
    },
    /// The device failed; the slots of the batch were emptied.
    #[error("the step failed and its slots were emptied: {0}")]
    Backend(#[from] BackendError),
}

impl StepError {
    /// Whether no later step can succeed either: the device is gone.
    pub fn is_lost(&self) -> bool {
        matches!(self, StepError::Backend(BackendError::Lost(_)))
    }
}

/// Why a slot could not be cut back. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewindError {
    /// The target is longer than the slot.
    #[error("cannot rewind to {target}: the slot holds {len} tokens")]
    Ahead {
        /// Tokens asked for.
        target: usize,
        /// Tokens in the slot.
        len: usize,
    },
    /// The rings no longer hold what the target needs.
    #[error("cannot rewind to {target} without its frontier: the rings reach back to {floor}")]
    Gone {
        /// Tokens asked for.
        target: usize,
        /// Shortest length that the rings can return to.
        floor: usize,
    },
    /// The frontier belongs to another slot or to tokens that were replaced.
    #[error("the frontier at {len} tokens is not part of this slot's timeline any more")]
    Stale {
        /// Its length.
        len: usize,
    },
}

/// Why a state could not be imported. The slot was emptied.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The state was made for another geometry, rounding or a longer slot.
    #[error("cannot import this state: {what} is {found}, expected {expected}")]
    Mismatch {
        /// What differs.
        what: String,
        /// Found in the state.
        found: String,
        /// Expected by the session.
        expected: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Why a frontier could not be taken, restored or copied.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is not part of the timeline; nothing was changed.
    #[error(transparent)]
    Rewind(#[from] RewindError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
