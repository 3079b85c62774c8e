//! Steps: which rows are computed next, and what comes of them.

use std::time::Instant;

use ds4_model::{Batch, OutputRow, Outputs, SessionShape, StepError, Wanted};

use super::snapshots::Passage;
use super::{
    Event, FinishReason, MIN_ANCHOR, PromptRow, SNAPSHOT_STRIDE, Scheduler, Sequence, SequenceId,
    Timings,
};
use crate::sampler::{NotFinite, TokenLogprobs};

/// A step that is under way.
pub(super) struct Flight {
    parts: Vec<Part>,
    passages: Vec<Passage>,
    n_rows: usize,
    /// Rows of prompts.
    n_prefilled: usize,
    started: Instant,
}

/// A sequence's part of a step.
struct Part {
    id: SequenceId,
    slot: usize,
    n_tokens: usize,
    /// Whether they are tokens of its prompt.
    prefills: bool,
    /// Number of the output of its last row among those of the step.
    output: Option<usize>,
    /// Number of the output of its first row, where all have one and are wanted.
    scored: Option<usize>,
}

impl Scheduler {
    /// Whether a sequence has a part in the step under way.
    pub(super) fn is_in_flight(&self, id: SequenceId) -> bool {
        let mut parts = self.flight.iter().flat_map(|flight| &flight.parts);
        parts.any(|part| part.id == id)
    }

    /// Ends the step under way without looking at what came of it.
    pub(super) fn abandon_step(&mut self) {
        if self.flight.take().is_some() {
            // What failed is lost with the rest.
            let _ = self.engine.wait();
        }
    }

    /// Plans a step and starts it.
    pub(super) fn launch(&mut self) -> Result<(), StepError> {
        self.turnaround = None;
        let (batch, parts) = self.plan();
        if parts.is_empty() {
            self.landed = None;
            return Ok(());
        }
        let flight = Flight {
            passages: self.passages(&batch, &parts),
            n_rows: batch.n_rows(),
            n_prefilled: parts
                .iter()
                .filter(|p| p.prefills)
                .map(|p| p.n_tokens)
                .sum(),
            started: Instant::now(),
            parts,
        };
        for part in flight.parts.iter().filter(|part| !part.prefills) {
            let mut running = self.running.iter_mut();
            let sequence = running
                .find(|s| s.id == part.id)
                .expect("it is in the plan");
            sequence.next.drain(..part.n_tokens);
        }
        self.turnaround = self.landed.take().map(|landed| landed.elapsed());
        if let Err(error) = self.engine.launch(&batch) {
            self.lose(&flight);
            return Err(error);
        }
        self.flight = Some(flight);
        Ok(())
    }

    /// Drops the sequences of a step that failed.
    fn lose(&mut self, flight: &Flight) {
        for part in &flight.parts {
            self.running.retain(|s| s.id != part.id);
            self.empty(part.slot);
        }
    }

    /// Ends the step under way and gives every sequence its part.
    pub(super) fn land(&mut self, events: &mut Vec<Event>) -> Result<(), StepError> {
        let Some(flight) = self.flight.take() else {
            return Ok(());
        };
        if let Err(error) = self.engine.wait() {
            self.lose(&flight);
            return Err(error);
        }
        self.landed = Some(Instant::now());
        let elapsed = flight.started.elapsed();
        if flight.n_prefilled == flight.n_rows {
            self.rates.note_prefill(flight.n_rows, elapsed);
        } else if flight.n_prefilled > 0 {
            self.rates.note_mixed(flight.n_prefilled, elapsed);
        }
        let mut finished = Vec::new();
        for part in &flight.parts {
            let mut running = self.running.iter_mut();
            let at = running
                .position(|s| s.id == part.id)
                .expect("it was not dropped");
            if let Err(error) = self.keep_prompt_rows(at, part) {
                self.lose(&flight);
                return Err(error);
            }
            let sequence = &mut self.running[at];
            let id = sequence.id;
            if part.prefills {
                sequence.timings.n_done += part.n_tokens;
                sequence.timings.prefill += elapsed;
                events.push(Event::Prefill {
                    id,
                    n_done: sequence.timings.n_done,
                    n_total: sequence.request.tokens.len(),
                    n_cached: sequence.timings.n_cached,
                });
            } else {
                sequence.timings.decode += elapsed;
            }
            let reason = if sequence.is_cancelled {
                Some(FinishReason::Cancelled)
            } else {
                match part.output {
                    // Tokens that were put behind the last one come before any other.
                    Some(output) if sequence.next.is_empty() => {
                        match self.next_token(at, output, events) {
                            Ok(reason) => reason,
                            Err(error) => {
                                self.lose(&flight);
                                return Err(error);
                            }
                        }
                    }
                    _ => None,
                }
            };
            if let Some(reason) = reason {
                finished.push(id);
                let timings = self.running[at].timings;
                events.push(Event::Finished {
                    id,
                    reason,
                    timings,
                });
            }
        }
        self.running.retain(|s| !finished.contains(&s.id));
        self.keep_progress(&flight.passages);
        for passage in &flight.passages {
            if self.running.iter().all(|s| s.slot != passage.slot) {
                self.leave(passage.slot);
            }
        }
        Ok(())
    }

    /// Keeps the logits of a part of a prompt, where they are wanted.
    fn keep_prompt_rows(&mut self, at: usize, part: &Part) -> Result<(), StepError> {
        let Some(first) = part.scored else {
            return Ok(());
        };
        let n_done = self.running[at].timings.n_done;
        for i in 0..part.n_tokens {
            let logits = match self.engine.output(first + i) {
                OutputRow::Logits(row) => row.to_vec(),
                OutputRow::Candidates(_) => {
                    let mut row = Vec::new();
                    self.engine.read_logits(first + i, &mut row)?;
                    row
                }
            };
            self.prompt_rows.push(PromptRow {
                id: part.id,
                at: n_done + i,
                logits,
            });
        }
        Ok(())
    }

    /// Chooses the next token of a sequence, unless it ends.
    fn next_token(
        &mut self,
        at: usize,
        output: usize,
        events: &mut Vec<Event>,
    ) -> Result<Option<FinishReason>, StepError> {
        let context = self.engine.context();
        let Timings { n_decoded, .. } = self.running[at].timings;
        let request = &self.running[at].request;
        let in_slot = request.tokens.len() + n_decoded;
        if n_decoded >= request.max_tokens {
            return Ok(Some(FinishReason::Length));
        }
        if in_slot >= context {
            return Ok(Some(FinishReason::ContextFull));
        }
        let Ok((token, logprobs)) = self.sample(at, output)? else {
            return Ok(Some(FinishReason::NotFinite));
        };
        let sequence = &mut self.running[at];
        if sequence.request.stop_tokens.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        sequence.timings.n_decoded += 1;
        sequence.next.push(token);
        events.push(Event::Token {
            id: sequence.id,
            token,
            logprobs,
        });
        // The last token allowed need not be computed.
        let is_last = sequence.timings.n_decoded >= sequence.request.max_tokens;
        Ok(is_last.then_some(FinishReason::Length))
    }

    /// Samples from an output of the last step: from its candidates when they decide,
    /// otherwise from the whole row.
    #[allow(clippy::type_complexity)]
    fn sample(
        &mut self,
        at: usize,
        output: usize,
    ) -> Result<Result<(u32, Option<TokenLogprobs>), NotFinite>, StepError> {
        let n_vocab = self.engine.geometry().n_vocab;
        let Sequence {
            sampler,
            constraint,
            request,
            ..
        } = &mut self.running[at];
        let n_logprobs = request.n_logprobs;
        let row: &[f32] = match self.engine.output(output) {
            OutputRow::Logits(row) => row,
            OutputRow::Candidates(candidates) => {
                let chosen = match sampler.choose(&candidates, n_vocab, constraint) {
                    Ok(chosen) => chosen,
                    Err(error) => return Ok(Err(error)),
                };
                if let Some(token) = chosen {
                    let logprobs = n_logprobs.map(|n| {
                        let known = TokenLogprobs::of_candidates(&candidates, n_vocab, token, n);
                        known.expect("a chosen token is a candidate, and no more are wanted")
                    });
                    return Ok(Ok((token, logprobs)));
                }
                self.engine.read_logits(output, &mut self.row)?;
                &self.row
            }
        };
        Ok(sampler.sample_within(row, constraint).map(|token| {
            let logprobs = n_logprobs.map(|n| TokenLogprobs::new(row, token, n));
            (token, logprobs)
        }))
    }

    /// The rows of the next step, and what of them is whose.
    fn plan(&self) -> (Batch, Vec<Part>) {
        let mut batch = Batch::new();
        let mut parts = Vec::new();
        let mut n_outputs = 0;
        let mut push = |batch: &mut Batch, sequence: &Sequence, tokens: &[u32], ends: bool| {
            let is_scored = sequence.is_scoring();
            let (outputs, n_new) = match (is_scored, ends) {
                (true, _) => (Outputs::All, tokens.len()),
                (false, true) => (Outputs::Last, 1),
                (false, false) => (Outputs::None, 0),
            };
            let wanted = match is_scored {
                true => Wanted::Logits,
                false => sequence.sampler.wanted(sequence.request.n_logprobs),
            };
            batch.push_wanting(sequence.slot, tokens, outputs, wanted);
            parts.push(Part {
                id: sequence.id,
                slot: sequence.slot,
                n_tokens: tokens.len(),
                prefills: sequence.is_prefilling(),
                output: ends.then(|| n_outputs + n_new - 1),
                scored: is_scored.then_some(n_outputs),
            });
            n_outputs += n_new;
            n_outputs
        };
        let SessionShape {
            max_rows,
            max_outputs,
            ..
        } = *self.engine.shape();
        // Outputs of the step so far. There is one for every sequence, whatever is scored.
        let mut n_taken = 0;
        for sequence in self.running.iter().filter(|s| !s.is_prefilling()) {
            let room = max_rows - batch.n_rows();
            let n = sequence.next.len().min(room);
            if n > 0 {
                let ends = n == sequence.next.len();
                n_taken = push(&mut batch, sequence, &sequence.next[..n], ends);
            }
        }
        let options = &self.options;
        let rows = match batch.n_rows() {
            0 => self.rates.prefill_rows(options.prefill_time),
            _ => self.rates.mixed_rows(options.mixed_time),
        };
        let mut room = rows.min(max_rows - batch.n_rows());
        let mut n_left = self.running.iter().filter(|s| s.is_prefilling()).count();
        for sequence in self.running.iter().filter(|s| s.is_prefilling()) {
            if room == 0 {
                break;
            }
            n_left -= 1;
            let prompt = &sequence.request.tokens;
            let n_done = sequence.timings.n_done;
            let most = match sequence.is_scoring() {
                true => room.min(max_outputs.saturating_sub(n_taken + n_left).max(1)),
                false => room,
            };
            let end = self.chunk_end(sequence, most);
            n_taken = push(
                &mut batch,
                sequence,
                &prompt[n_done..end],
                end == prompt.len(),
            );
            room -= end - n_done;
        }
        (batch, parts)
    }

    /// Where the next chunk of at most `room` tokens of a prompt ends: at the first
    /// place where a state is wanted that the rings would not reach from further on,
    /// otherwise where a snapshot is small.
    fn chunk_end(&self, sequence: &Sequence, room: usize) -> usize {
        let n_done = sequence.timings.n_done;
        let n_prompt = sequence.request.tokens.len();
        let end = n_prompt.min(n_done + room);
        let awaited = self.waiting.iter().filter_map(|w| w.awaits);
        let awaited = awaited.filter(|(id, _)| *id == sequence.id);
        let rewind_rows = self.engine.shape().rewind_rows;
        let anchors = sequence.request.anchors.iter().copied();
        let anchors = anchors.filter(|at| *at >= MIN_ANCHOR && at + rewind_rows < end);
        let last_user = sequence.last_user();
        let last_user = last_user.filter(|at| at + rewind_rows < end);
        let scored = sequence.request.scored_from;
        let places = awaited.map(|(_, n_awaited)| n_awaited);
        let places = places.chain(anchors).chain(last_user).chain(scored);
        if let Some(place) = places.filter(|at| (n_done + 1..end).contains(at)).min() {
            return place;
        }
        let stride = end / SNAPSHOT_STRIDE * SNAPSHOT_STRIDE;
        if end < n_prompt && stride > n_done {
            stride
        } else {
            end
        }
    }

    /// What every segment of a batch will have passed.
    fn passages(&self, batch: &Batch, parts: &[Part]) -> Vec<Passage> {
        let segments = parts.iter().zip(batch.segments());
        segments
            .map(|(part, segment)| {
                let mut running = self.running.iter();
                let sequence = running
                    .find(|s| s.id == part.id)
                    .expect("it is in the plan");
                let request = &sequence.request;
                let from = self.engine.len(segment.slot);
                let to = from + segment.tokens.len();
                let passed = |at: &usize| (from + 1..=to).contains(at);
                Passage {
                    slot: segment.slot,
                    from,
                    to,
                    n_prompt: request.tokens.len(),
                    anchors: request.anchors.iter().copied().filter(passed).collect(),
                    last_user: sequence.last_user().filter(passed),
                }
            })
            .collect()
    }
}
