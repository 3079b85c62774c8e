//! Numbers for dashboards, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ds4_engine::store::{StoreCounts, StoreUsage};

use crate::generation::Outcome;
use crate::log::finish_name;
use crate::worker::Worker;

/// Upper bounds of the buckets of durations of requests, in seconds.
const REQUEST_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Upper bounds of the buckets of durations of tokens, in seconds.
const TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0,
];

#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    n: u64,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram {
            bounds,
            counts: vec![0; bounds.len()],
            n: 0,
            sum: 0.0,
        }
    }

    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        for (count, bound) in self.counts.iter_mut().zip(self.bounds) {
            *count += u64::from(seconds <= *bound);
        }
        self.n += 1;
        self.sum += seconds;
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        head(name, help, "histogram", out);
        for (count, bound) in self.counts.iter().zip(self.bounds) {
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

#[derive(Debug)]
struct Numbers {
    /// By path and status.
    answers: BTreeMap<(&'static str, u16), u64>,
    /// By name.
    finishes: BTreeMap<&'static str, u64>,
    /// Replies and cached tokens by where the tokens came from.
    sources: BTreeMap<&'static str, (u64, u64)>,
    n_prompt: u64,
    n_cached: u64,
    n_prefilled: u64,
    n_generated: u64,
    n_reasoning: u64,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    first_text: Histogram,
    render: Histogram,
    token: Histogram,
    prefill_s: f64,
    decode_s: f64,
}

impl Default for Numbers {
    fn default() -> Numbers {
        let of_requests = || Histogram::new(REQUEST_BUCKETS);
        Numbers {
            answers: BTreeMap::new(),
            finishes: BTreeMap::new(),
            sources: BTreeMap::new(),
            n_prompt: 0,
            n_cached: 0,
            n_prefilled: 0,
            n_generated: 0,
            n_reasoning: 0,
            queue: of_requests(),
            prefill: of_requests(),
            decode: of_requests(),
            first_text: of_requests(),
            render: of_requests(),
            token: Histogram::new(TOKEN_BUCKETS),
            prefill_s: 0.0,
            decode_s: 0.0,
        }
    }
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
    pub(crate) fn answered(&self, route: &'static str, status: u16) {
        self.with(|n| *n.answers.entry((route, status)).or_default() += 1);
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
            n.n_prefilled += outcome.timings.n_prefilled as u64;
            n.n_generated += usage.n_generated as u64;
            n.n_reasoning += usage.n_reasoning as u64;
            let timings = &outcome.timings;
            let source = n.sources.entry(timings.cache_source).or_default();
            source.0 += 1;
            source.1 += usage.n_cached as u64;
            if let Ok(n_after_first @ 1..) = u32::try_from(usage.n_generated.saturating_sub(1)) {
                n.token.add(timings.decode / n_after_first);
            }
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
    pub(crate) fn text(&self, worker: &Worker, weights_bytes: u64) -> String {
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
        for (name, help, of) in [
            (
                "ds4_cache_replies_total",
                "replies by where the cached part of their prompt came from",
                (|counts| counts.0) as fn(&(u64, u64)) -> u64,
            ),
            (
                "ds4_cache_tokens_total",
                "prompt tokens that were cached, by where they came from",
                |counts| counts.1,
            ),
        ] {
            head(name, help, "counter", &mut out);
            for (source, counts) in &n.sources {
                let labels = format!("{name}{{source=\"{source}\"}}");
                line(&labels, of(counts) as f64, &mut out);
            }
        }
        let (running, waiting) = worker.load();
        let counters = worker.counters();
        let slots = worker.slots();
        let n_computed = n.n_prefilled;
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
                "ds4_slots_busy",
                "slots in which a request runs",
                "gauge",
                slots.iter().filter(|s| s.request_id.is_some()).count() as f64,
            ),
            (
                "ds4_queue_length",
                "requests that wait for a slot",
                "gauge",
                waiting as f64,
            ),
            (
                "ds4_weights_bytes",
                "bytes of the weights",
                "gauge",
                weights_bytes as f64,
            ),
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
            (
                "ds4_inter_token_seconds",
                "from one token to the next, the mean of each reply",
                &n.token,
            ),
        ] {
            histogram.write(name, help, &mut out);
        }
        if let Some((counts, usage)) = worker.store() {
            store(&counts, &usage, &mut out);
        }
        out
    }
}

/// How the store of states fares.
fn store(counts: &StoreCounts, usage: &StoreUsage, out: &mut String) {
    for (name, help, value) in [
        ("points_written", "states written", counts.n_points),
        ("points_loaded", "states read back", counts.n_loaded),
        (
            "points_evicted",
            "states that gave way to others",
            counts.n_evicted,
        ),
        ("blocks_written", "blocks of rows written", counts.n_blocks),
        (
            "blocks_shared",
            "blocks that a save found already stored",
            counts.n_shared_blocks,
        ),
        ("written_bytes", "bytes written", counts.written_bytes),
        ("read_bytes", "bytes read", counts.read_bytes),
        ("files_damaged", "files found damaged", counts.n_quarantined),
        (
            "files_given_up",
            "files that were not written, the queue or the disk being full",
            counts.n_dropped,
        ),
    ] {
        let name = format!("ds4_store_{name}_total");
        head(&name, help, "counter", out);
        line(&name, value as f64, out);
    }
    for (name, help, value) in [
        ("points", "states of this model", usage.n_points as f64),
        ("blocks", "blocks of this model", usage.n_blocks as f64),
        ("bytes", "bytes of this model's files", usage.n_bytes as f64),
        (
            "queued_bytes",
            "bytes that wait to be written",
            usage.n_queued_bytes as f64,
        ),
    ] {
        let name = format!("ds4_store_{name}");
        head(&name, help, "gauge", out);
        line(&name, value, out);
    }
}

fn head(name: &str, help: &str, kind: &str, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(name: &str, value: f64, out: &mut String) {
    let _ = writeln!(out, "{name} {value}");
}
