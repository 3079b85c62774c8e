//! `ds4 bench`: prefill and decode at growing contexts.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ds4_engine::{Batch, Engine, Outputs, Wanted};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::args::BenchArgs;
use crate::commands::inspect::weight_bytes_per_token;
use crate::console::Console;
use crate::model::{open_engine_of, open_file};
use crate::options::EngineOptions;
use crate::units;

/// The tokens are the same in every run.
const SEED: u64 = 1;

/// Runs the command: one line of CSV for every context. At each, the cache is filled up to it
/// from where the last one ended, then tokens are decoded one at a time, in as many copies as
/// asked, and cut off again.
///
/// # Errors
/// The model cannot be opened or run, or a context does not fit.
pub(crate) fn run(args: &BenchArgs, console: &Console, out: &mut dyn Write) -> Result<()> {
    let mut contexts = args.contexts.clone();
    contexts.sort_unstable();
    contexts.dedup();
    let Some(&longest) = contexts.last() else {
        bail!("--contexts names none");
    };
    let options = EngineOptions::new(&args.engine)?;
    if let Some(banner) = options.model.banner() {
        console.note(&banner);
    }
    let gguf = open_file(&options.model)?;
    let started = Instant::now();
    let mut engine = open_engine_of(&gguf, &options, console, |open| {
        open.context = Some(longest + args.tokens);
        open.n_slots = args.sequences;
        open.chunk = args.chunk;
        open.timed = args.timed;
    })?;
    console.report(&format!(
        "loaded in {:.2} s",
        started.elapsed().as_secs_f64()
    ));
    console.report(&format!("memory: {}", engine.plan()));
    let token_bytes = weight_bytes_per_token(&gguf, engine.geometry());
    console.report(&format!(
        "a decoded token reads {} of weights",
        units::bytes(token_bytes)
    ));
    // Every slot takes a row of a step; the rest are the chunk's.
    let chunk = engine.max_rows();

    let mut tokens = RandomTokens {
        random: ChaCha8Rng::seed_from_u64(SEED),
        n_vocab: engine.geometry().n_vocab as u32,
    };
    // The first steps touch pages and wake threads; they are not measured.
    append(&mut engine, &tokens.take(chunk.min(longest)), chunk)?;
    decode(&mut engine, args.sequences, &tokens.take(2))?;
    for slot in 0..args.sequences {
        engine.clear(slot);
    }
    engine.take_kernel_times();

    writeln!(
        out,
        "context,prefill_tokens,prefill_ms,prefill_tps,decode_tokens,decode_ms,decode_tps"
    )?;
    for context in contexts {
        console.progress(&format!("context {}", units::count(context as u64)));
        let prompt = tokens.take(context - engine.len(0));
        let prefill = append(&mut engine, &prompt, chunk)?;
        let prefill_kernels = engine.take_kernel_times();
        let frontier = engine.frontier(0)?;
        for slot in 1..args.sequences {
            engine.fork(0, slot);
        }
        let time = decode(&mut engine, args.sequences, &tokens.take(args.tokens))?;
        let decode_kernels = engine.take_kernel_times();
        engine.restore(0, &frontier)?;
        console.end_progress();
        let n_decoded = args.tokens * args.sequences;
        writeln!(
            out,
            "{context},{},{:.3},{:.2},{},{:.3},{:.2}",
            prompt.len(),
            prefill.as_secs_f64() * 1e3,
            prompt.len() as f64 / prefill.as_secs_f64(),
            n_decoded,
            time.as_secs_f64() * 1e3,
            n_decoded as f64 / time.as_secs_f64(),
        )?;
        out.flush()?;
        if let Some(peak) = engine.memory_bandwidth().filter(|_| args.sequences == 1) {
            let achieved = token_bytes as f64 * args.tokens as f64 / time.as_secs_f64();
            console.report(&format!(
                "decode at {context}: {:.0} GB/s of weights, {:.0} % of the device's {:.0}",
                achieved / 1e9,
                achieved / peak * 100.0,
                peak / 1e9
            ));
        }
        for (what, kernels) in [("prefill", prefill_kernels), ("decode", decode_kernels)] {
            if !kernels.is_empty() {
                console.report(&kernel_table(&format!("{what} to {context}"), &kernels));
            }
        }
    }
    Ok(())
}

/// Kernels with their launches, time and share of all, longest first.
fn kernel_table(title: &str, kernels: &[(String, u64, f64)]) -> String {
    let all: f64 = kernels.iter().map(|(_, _, ms)| ms).sum();
    let mut table = format!("{title}: {all:.2} ms in kernels\n");
    for (name, launches, ms) in kernels {
        table += &format!(
            "  {name:24} {launches:8} {ms:12.3} ms {:6.1} %\n",
            ms / all * 100.0
        );
    }
    table
}

/// Decodes tokens one at a time in the first slots, the same in each, and returns the time.
fn decode(engine: &mut Engine, n_slots: usize, tokens: &[u32]) -> Result<Duration> {
    let started = Instant::now();
    for token in tokens {
        let mut batch = Batch::new();
        for slot in 0..n_slots {
            let wanted = Wanted::Candidates { temperature: 1.0 };
            batch.push_wanting(slot, &[*token], Outputs::Last, wanted);
        }
        engine.step(&batch)?;
    }
    Ok(started.elapsed())
}

struct RandomTokens {
    random: ChaCha8Rng,
    n_vocab: u32,
}

impl RandomTokens {
    fn take(&mut self, n: usize) -> Vec<u32> {
        (0..n)
            .map(|_| self.random.next_u32() % self.n_vocab)
            .collect()
    }
}

/// Appends tokens in steps of so many rows and returns the time. Logits are computed where a
/// generation would: at the end.
fn append(engine: &mut Engine, tokens: &[u32], n_rows: usize) -> Result<Duration> {
    let started = Instant::now();
    let n_steps = tokens.len().div_ceil(n_rows);
    for (i, chunk) in tokens.chunks(n_rows).enumerate() {
        let outputs = if i + 1 == n_steps {
            Outputs::Last
        } else {
            Outputs::None
        };
        let mut batch = Batch::new();
        batch.push(0, chunk, outputs);
        engine.step(&batch)?;
    }
    Ok(started.elapsed())
}
