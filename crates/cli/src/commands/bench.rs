//! `ds4 bench`: prefill and decode at growing contexts.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ds4_engine::{Batch, Engine, Outputs};
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
/// from where the last one ended, then tokens are decoded one at a time and cut off again.
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
    let mut engine = open_engine_of(&gguf, &options, console, |open| {
        open.context = Some(longest + args.tokens);
        open.chunk = args.chunk;
    })?;
    console.report(&format!("memory: {}", engine.plan()));
    console.report(&format!(
        "a decoded token reads {} of weights",
        units::bytes(weight_bytes_per_token(&gguf, engine.geometry()))
    ));

    let mut tokens = RandomTokens {
        random: ChaCha8Rng::seed_from_u64(SEED),
        n_vocab: engine.geometry().n_vocab as u32,
    };
    // The first steps touch pages and wake threads; they are not measured.
    append(
        &mut engine,
        &tokens.take(args.chunk.min(longest)),
        args.chunk,
    )?;
    append(&mut engine, &tokens.take(1), 1)?;
    engine.clear(0);

    writeln!(
        out,
        "context,prefill_tokens,prefill_ms,prefill_tps,decode_tokens,decode_ms,decode_tps"
    )?;
    for context in contexts {
        console.progress(&format!("context {}", units::count(context as u64)));
        let prompt = tokens.take(context - engine.len(0));
        let prefill = append(&mut engine, &prompt, args.chunk)?;
        let frontier = engine.frontier(0)?;
        let decode = append(&mut engine, &tokens.take(args.tokens), 1)?;
        engine.restore(0, &frontier)?;
        console.end_progress();
        writeln!(
            out,
            "{context},{},{:.3},{:.2},{},{:.3},{:.2}",
            prompt.len(),
            prefill.as_secs_f64() * 1e3,
            prompt.len() as f64 / prefill.as_secs_f64(),
            args.tokens,
            decode.as_secs_f64() * 1e3,
            args.tokens as f64 / decode.as_secs_f64(),
        )?;
        out.flush()?;
    }
    Ok(())
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
/// generation would: at the end, and at every token that is decoded.
fn append(engine: &mut Engine, tokens: &[u32], n_rows: usize) -> Result<Duration> {
    let started = Instant::now();
    let n_steps = tokens.len().div_ceil(n_rows);
    for (i, chunk) in tokens.chunks(n_rows).enumerate() {
        let outputs = if i + 1 == n_steps || n_rows == 1 {
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
