//! Conversations that are too long, shortened by their oldest turns.

use ds4_text::{Message, Role};

use crate::generation::{Failure, FailureKind, Generation, PromptSource};
use crate::prompt::{Prompter, TokenPrompt};

/// What is dropped of a prompt that is too long is at least a whole number of this share of the
/// context. The next turns of the conversation then drop the same, until the room is used up, and
/// find in the cache what this one computed.
const SHARE: usize = 4;

/// The tokens of a prompt that fits, of which the oldest turns were dropped as far as that takes.
/// System text, tools and the last turn stay. Also how many messages are gone.
///
/// # Errors
/// Those of [`Prompter::tokens`]; a prompt that is too long without the turns that may be dropped.
pub fn fitting(
    prompter: &Prompter,
    generation: &mut Generation,
    n_context: usize,
) -> Result<(TokenPrompt, usize), Failure> {
    let too_long = match prompter.tokens(generation) {
        Err(failure) if matches!(failure.kind, FailureKind::ContextOverflow { .. }) => failure,
        other => return other.map(|prompt| (prompt, 0)),
    };
    let PromptSource::Messages(all) = &generation.prompt else {
        return Err(too_long);
    };
    let all = all.clone();
    let turns = turn_starts(&all);
    let n_all = prompter.encode(generation)?.len();
    let n_limit = n_context.saturating_sub(1);
    let share = (n_context / SHARE).max(1);
    let n_wanted = n_all.saturating_sub((n_all - n_limit).div_ceil(share) * share);
    let mut without = |n_turns: usize| -> Result<usize, Failure> {
        generation.prompt = PromptSource::Messages(shortened(&all, &turns, n_turns));
        Ok(prompter.encode(generation)?.len())
    };
    // The fewest turns whose loss is enough: fewer turns are never longer.
    let (mut low, mut high) = (1, turns.len().saturating_sub(1));
    while low < high {
        let middle = low.midpoint(high);
        if without(middle)? <= n_wanted {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let prompt = shortened(&all, &turns, high);
    let n_gone = all.len() - prompt.len();
    generation.prompt = PromptSource::Messages(prompt);
    Ok((prompter.tokens(generation)?, n_gone))
}

/// Where the turns of a conversation begin: at what a user says behind what the model said, or
/// at the beginning. The results of tools belong to the turn of their calls.
fn turn_starts(messages: &[Message]) -> Vec<usize> {
    let n_head = messages.iter().take_while(|m| m.role == Role::System);
    let n_head = n_head.count();
    let mut starts = Vec::new();
    let mut is_answered = true;
    for (i, message) in messages.iter().enumerate().skip(n_head) {
        match message.role {
            Role::Assistant | Role::Tool => is_answered = true,
            _ if is_answered => {
                is_answered = false;
                starts.push(i);
            }
            _ => {}
        }
    }
    starts
}

/// The messages before the first turn, and those from turn `n_turns` on.
fn shortened(all: &[Message], turns: &[usize], n_turns: usize) -> Vec<Message> {
    let (Some(&first), Some(&kept)) = (turns.first(), turns.get(n_turns)) else {
        return all.to_vec();
    };
    let head = all[..first].iter().filter(|m| m.role == Role::System);
    head.chain(&all[kept..]).cloned().collect()
}
