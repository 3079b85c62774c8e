//! How replies end, and what is left of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ds4_engine::{FinishReason, SequenceId};
use tokio::sync::mpsc::UnboundedSender;

use super::body::{Body, Running};
use super::source::TokenSource;
use super::{Job, internal, shutting_down};
use crate::bookkeeper::Closed;
use crate::generation::{Failure, Finish, Outcome, ReplyEvent, Timings, Usage};
use crate::log::{Ending, RequestLine, finish_name, rate};
use crate::trace::Record;
use crate::turns::Turn;

/// What a reply said before it ended.
#[derive(Default)]
struct Said {
    tokens: Vec<u32>,
    text: String,
}

impl<S: TokenSource> Body<S> {
    /// Finishes a reply: for the source's reason, or because it ended itself.
    pub(super) fn end(&mut self, id: SequenceId, reason: Option<FinishReason>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        let mut shown = running.view();
        let n_prefilled = running.n_prefilled();
        let said = self.said(&running);
        let Running {
            job,
            events,
            reply,
            submitted,
            started,
            first_token,
            constraints,
            ..
        } = running;
        let reason = reason.unwrap_or(FinishReason::Stop);
        let Ok(ended) = catch_unwind(AssertUnwindSafe(|| reply.finish(reason))) else {
            let failure = internal("finishing the reply failed by a bug");
            return self.lose(&job, &events, said, failure);
        };
        let now = Instant::now();
        let started_at = started.as_ref().map_or(now, |s| s.at);
        let first_token = first_token.unwrap_or(now);
        let ms = (now - started_at).as_millis() as u64;
        let known = self.shared.reply_ms.load(Ordering::Relaxed);
        let mean = if known == 0 { ms } else { (7 * known + ms) / 8 };
        self.shared.reply_ms.store(mean, Ordering::Relaxed);
        let n_cached = started.as_ref().map_or(0, |s| s.n_cached);
        let usage = Usage {
            n_prompt: job.prompt.tokens.len(),
            n_cached,
            n_generated: ended.n_generated,
            n_reasoning: ended.n_reasoning,
        };
        let timings = Timings {
            queue: started_at - submitted,
            prefill: first_token - started_at,
            n_prefilled,
            decode: now - first_token,
            cache_source: started.as_ref().map_or("none", |s| s.source),
            cache_miss: started.as_ref().map_or_else(String::new, |s| s.why.clone()),
        };
        let turn = ended.turn.filter(|_| job.generation.use_cache);
        let turn = turn.map(|turn| self.turns.insert(turn));
        let record = said.map(|said| Record {
            generation: Arc::clone(&job.generation),
            prompt_tokens: job.prompt.tokens.clone(),
            constraints,
            tokens: said.tokens,
            text: said.text,
            calls: ended.calls.clone(),
        });
        let mut all = ended.events;
        let ending = match ended.finish {
            Ok(finish) => {
                if finish == Finish::Cancelled {
                    let counter = &self.shared.counters.n_cancelled;
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                let ending = Ending::Finished(finish.clone());
                all.push(ReplyEvent::Finished(Box::new(Outcome {
                    finish,
                    reasoning: ended.reasoning,
                    content: ended.content,
                    calls: ended.calls,
                    usage,
                    timings: timings.clone(),
                })));
                ending
            }
            Err(failure) => {
                let counter = &self.shared.counters.n_failed;
                counter.fetch_add(1, Ordering::Relaxed);
                all.push(ReplyEvent::Failed(failure.clone()));
                Ending::Failed(failure)
            }
        };
        if let Some(slot) = started.and_then(|started| started.slot) {
            shown.finish = Some(match &ending {
                Ending::Finished(finish) => finish_name(finish),
                Ending::Failed(_) => "failed",
            });
            shown.usage = usage;
            shown.decode_rate = rate(usage.n_generated.saturating_sub(1), timings.decode);
            if self.last.len() <= slot {
                self.last.resize(slot + 1, None);
            }
            self.last[slot] = Some(shown);
        }
        self.close(&job, usage, timings, ending, record, turn);
        // Whoever sees the end finds it in the slots too.
        self.publish();
        for event in all {
            // Whoever asked may be gone.
            let _ = events.send(event);
        }
    }

    pub(super) fn fail(&mut self, id: SequenceId, failure: Failure) {
        if let Some(running) = self.running.remove(&id) {
            let said = self.said(&running);
            self.lose(&running.job, &running.events, said, failure);
        }
    }

    /// Reports a request that was refused before it had a reply.
    pub(super) fn refuse(&self, job: &Job, events: &UnboundedSender<ReplyEvent>, failure: Failure) {
        let said = self.options.trace.is_some().then(Said::default);
        self.lose(job, events, said, failure);
    }

    /// Reports a reply that cannot be finished, after it said this.
    fn lose(
        &self,
        job: &Job,
        events: &UnboundedSender<ReplyEvent>,
        said: Option<Said>,
        failure: Failure,
    ) {
        self.shared
            .counters
            .n_failed
            .fetch_add(1, Ordering::Relaxed);
        let usage = Usage {
            n_prompt: job.prompt.tokens.len(),
            ..Usage::default()
        };
        let record = said.map(|said| Record {
            generation: Arc::clone(&job.generation),
            prompt_tokens: job.prompt.tokens.clone(),
            constraints: Vec::new(),
            tokens: said.tokens,
            text: said.text,
            calls: Vec::new(),
        });
        let ending = Ending::Failed(failure.clone());
        self.close(job, usage, Timings::default(), ending, record, None);
        self.publish();
        // Whoever asked may be gone.
        let _ = events.send(ReplyEvent::Failed(failure));
    }

    /// Has a request written down.
    fn close(
        &self,
        job: &Job,
        usage: Usage,
        timings: Timings,
        ending: Ending,
        record: Option<Record>,
        turn: Option<Arc<Turn>>,
    ) {
        self.books.close(Closed {
            line: RequestLine {
                request_id: job.request_id.clone(),
                endpoint: job.generation.endpoint,
                client: job.client.clone(),
                usage,
                timings,
                n_replayed: job.prompt.n_replayed,
                n_rendered: job.prompt.n_rendered,
                ending,
            },
            record: record.map(Box::new),
            turn,
        });
    }

    /// What a reply said so far, if the trace wants to know.
    fn said(&self, running: &Running) -> Option<Said> {
        self.options.trace.is_some().then(|| Said {
            tokens: running.reply.tokens().to_vec(),
            text: running.reply.text().to_owned(),
        })
    }

    pub(super) fn give_up_all(&mut self) {
        let all: Vec<SequenceId> = self.running.keys().copied().collect();
        for id in all {
            self.source.cancel(id);
        }
        self.fail_all(&shutting_down());
    }

    /// Ends all replies with the same failure.
    pub(super) fn fail_all(&mut self, failure: &Failure) {
        let all: Vec<SequenceId> = self.running.keys().copied().collect();
        for id in all {
            self.fail(id, failure.clone());
        }
    }
}
