//! Prompts through the scheduler, for the logits of their tokens.

use std::collections::HashMap;

use anyhow::{Result, bail};
use ds4_engine::{Engine, Event, FinishReason, OpenOptions, Request, Scheduler, SequenceId};

use super::go_on;

/// Rows of a step, each with all its logits.
const STEP_ROWS: usize = 128;
/// Prompts that are computed side by side: short ones share a step.
const N_SLOTS: usize = 4;

/// What becomes of a prompt.
pub(super) enum Scored<'a> {
    /// The logits after its token `at`.
    Row { at: usize, logits: &'a [f32] },
    /// That was all.
    End,
}

/// Asks for an engine that scores `n_prompts` of up to `longest` tokens.
pub(super) fn plan(open: &mut OpenOptions, n_prompts: usize, longest: usize) {
    // A prompt needs a token of room behind it, and a step is no longer than a slot.
    let context = longest.max(STEP_ROWS) + 1;
    open.n_slots = N_SLOTS.min(n_prompts).max(1);
    open.context = Some(context);
    open.chunk = Some(STEP_ROWS);
    open.max_outputs = Some(STEP_ROWS);
}

/// Computes prompts, several at a time, and gives every row that they ask for, by the number of the
/// prompt: those of a prompt in order, those of others between them.
///
/// # Errors
/// A prompt is refused, the device fails, or as `take` says; Ctrl+C.
pub(super) fn run(
    engine: Engine,
    prompts: impl Iterator<Item = Request>,
    take: &mut dyn FnMut(usize, Scored<'_>) -> Result<()>,
) -> Result<()> {
    let most = 2 * engine.n_slots();
    let mut scheduler = Scheduler::new(engine);
    let mut prompts = prompts.enumerate();
    let mut numbers: HashMap<SequenceId, usize> = HashMap::new();
    loop {
        go_on()?;
        // Enough wait that no slot is idle.
        while numbers.len() < most
            && let Some((number, prompt)) = prompts.next()
        {
            numbers.insert(scheduler.submit(prompt)?, number);
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let events = scheduler.tick()?;
        for row in scheduler.take_prompt_rows() {
            if let Some(number) = numbers.get(&row.id) {
                let (at, logits) = (row.at, &row.logits[..]);
                take(*number, Scored::Row { at, logits })?;
            }
        }
        for event in events {
            let Event::Finished { id, reason, .. } = event else {
                continue;
            };
            if reason != FinishReason::Length {
                bail!("a prompt ended before its end: {reason:?}");
            }
            if let Some(number) = numbers.remove(&id) {
                take(number, Scored::End)?;
            }
        }
    }
}
