//! Numbers for dashboards, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::generation::Outcome;
use crate::log::finish_name;
use crate::worker::Worker;

/// Upper bounds of the buckets of durations, in seconds.
const BUCKETS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Debug, Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    n: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        for (count, bound) in self.counts.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
        self.n += 1;
        self.sum += seconds;
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        head(name, help, "histogram", out);
        for (count, bound) in self.counts.iter().zip(BUCKETS) {
            line(
                &format!("{name}_bucket{{le=\"{bound}\"}}"),
                *count as f64,
                out,
            );
        }
        line(&format!("{name}_bucket{{le=\"+Inf\"}}"), self.n as f64, out);
        line(&format!("{name}_sum"), self.sum, out);
        line(&format!("{name}_count"), self.n as f64, out);
    }
}

#[derive(Debug, Default)]
struct Numbers {
    /// By path and status.
    answers: BTreeMap<(String, u16), u64>,
    /// By name.
    finishes: BTreeMap<&'static str, u64>,
    n_prompt: u64,
    n_cached: u64,
    n_generated: u64,
    n_reasoning: u64,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    first_text: Histogram,
    render: Histogram,
    prefill_s: f64,
    decode_s: f64,
}

/// The counters of a server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    numbers: Mutex<Numbers>,
}

impl Metrics {
    fn with(&self, change: impl FnOnce(&mut Numbers)) {
        change(&mut self.numbers.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A request was answered with this status.
    pub(crate) fn answered(&self, route: &str, status: u16) {
        self.with(|n| *n.answers.entry((route.to_owned(), status)).or_default() += 1);
    }

    /// A prompt was rendered and tokenized.
    pub(crate) fn render_ms(&self, duration: Duration) {
        self.with(|n| n.render.add(duration));
    }

    /// A reply is over; its first text came after `first_text`.
    pub(crate) fn finished(&self, outcome: &Outcome, first_text: Duration) {
        let finish = finish_name(&outcome.finish);
        self.with(|n| {
            *n.finishes.entry(finish).or_default() += 1;
            let usage = outcome.usage;
            n.n_prompt += usage.n_prompt as u64;
            n.n_cached += usage.n_cached as u64;
            n.n_generated += usage.n_generated as u64;
            n.n_reasoning += usage.n_reasoning as u64;
            let timings = &outcome.timings;
            n.queue.add(timings.queue);
            n.prefill.add(timings.prefill);
            n.decode.add(timings.decode);
            n.prefill_s += timings.prefill.as_secs_f64();
            n.decode_s += timings.decode.as_secs_f64();
            if !first_text.is_zero() {
                n.first_text.add(first_text);
            }
        });
    }

    /// All of them as text.
    pub(crate) fn text(&self, worker: &Worker) -> String {
        use std::sync::atomic::Ordering::Relaxed;
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let n = &*numbers;
        let mut out = String::new();
        let name = "ds4_requests_total";
        head(name, "answers by route and status", "counter", &mut out);
        for ((route, status), count) in &n.answers {
            let labels = format!("{name}{{route=\"{route}\",status=\"{status}\"}}");
            line(&labels, *count as f64, &mut out);
        }
        let name = "ds4_replies_total";
        head(name, "replies by how they ended", "counter", &mut out);
        for (finish, count) in &n.finishes {
            line(
                &format!("{name}{{finish=\"{finish}\"}}"),
                *count as f64,
                &mut out,
            );
        }
        let (running, waiting) = worker.load();
        let counters = worker.counters();
        let slots = worker.slots();
        let n_computed = n.n_prompt - n.n_cached;
        let per_second = |n: u64, s: f64| if s > 0.0 { n as f64 / s } else { 0.0 };
        for (name, help, kind, value) in [
            (
                "ds4_prompt_tokens_total",
                "tokens of prompts",
                "counter",
                n.n_prompt as f64,
            ),
            (
                "ds4_cached_tokens_total",
                "prompt tokens that were cached",
                "counter",
                n.n_cached as f64,
            ),
            (
                "ds4_generated_tokens_total",
                "tokens generated",
                "counter",
                n.n_generated as f64,
            ),
            (
                "ds4_reasoning_tokens_total",
                "generated tokens of reasoning",
                "counter",
                n.n_reasoning as f64,
            ),
            (
                "ds4_engine_steps_total",
                "steps of the engine",
                "counter",
                counters.n_steps.load(Relaxed) as f64,
            ),
            (
                "ds4_cancelled_total",
                "replies whose client went away",
                "counter",
                counters.n_cancelled.load(Relaxed) as f64,
            ),
            (
                "ds4_failed_total",
                "replies that could not be finished",
                "counter",
                counters.n_failed.load(Relaxed) as f64,
            ),
            ("ds4_slots", "slots", "gauge", slots.len() as f64),
            (
                "ds4_slot_tokens",
                "tokens in all slots",
                "gauge",
                slots.iter().map(|s| s.n_tokens).sum::<usize>() as f64,
            ),
            (
                "llamacpp:prompt_tokens_total",
                "prompt tokens computed",
                "counter",
                n_computed as f64,
            ),
            (
                "llamacpp:tokens_predicted_total",
                "tokens generated",
                "counter",
                n.n_generated as f64,
            ),
            (
                "llamacpp:prompt_seconds_total",
                "time computing prompts",
                "counter",
                n.prefill_s,
            ),
            (
                "llamacpp:tokens_predicted_seconds_total",
                "time generating",
                "counter",
                n.decode_s,
            ),
            (
                "llamacpp:prompt_tokens_seconds",
                "prompt tokens computed in a second",
                "gauge",
                per_second(n_computed, n.prefill_s),
            ),
            (
                "llamacpp:predicted_tokens_seconds",
                "tokens generated in a second",
                "gauge",
                per_second(n.n_generated, n.decode_s),
            ),
            (
                "llamacpp:requests_processing",
                "requests running",
                "gauge",
                running as f64,
            ),
            (
                "llamacpp:requests_deferred",
                "requests waiting",
                "gauge",
                waiting as f64,
            ),
        ] {
            head(name, help, kind, &mut out);
            line(name, value, &mut out);
        }
        for (name, help, histogram) in [
            ("ds4_queue_seconds", "waiting for a slot", &n.queue),
            ("ds4_prefill_seconds", "computing the prompt", &n.prefill),
            ("ds4_decode_seconds", "generating", &n.decode),
            (
                "ds4_first_text_seconds",
                "from the request to the first text",
                &n.first_text,
            ),
            (
                "ds4_render_seconds",
                "rendering and tokenizing a prompt",
                &n.render,
            ),
        ] {
            histogram.write(name, help, &mut out);
        }
        out
    }
}

fn head(name: &str, help: &str, kind: &str, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(name: &str, value: f64, out: &mut String) {
    let _ = writeln!(out, "{name} {value}");
}
