//! `ds4 bench`: prefill and decode at growing contexts.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ds4_engine::{Batch, Engine, Geometry, Outputs, Wanted, random_model};
use ds4_formats::gguf::Gguf;
use ds4_model::LayerKind;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::Serialize;
use serde_json::json;

use crate::args::{BenchArgs, EngineArgs, WeightsArg};
use crate::commands::inspect::weight_bytes_per_token;
use crate::console::Console;
use crate::model::{name_of, open_engine_of, open_file};
use crate::model_choice::{ModelChoice, NamedBy};
use crate::options::EngineOptions;
use crate::units;
use crate::version;

/// The tokens are the same in every run.
const SEED: u64 = 1;
/// Tokens of the prompt whose first token is waited for.
const FIRST_PROMPT: usize = 16;

/// Runs the command: one line of CSV for every context, or one JSON document. At each, the cache is filled up to it
/// from where the last one ended, then tokens are decoded one at a time, in as many copies as asked,
/// and cut off again.
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
    let started = Instant::now();
    let (options, gguf) = model(args)?;
    let mut engine = open_engine_of(&gguf, &options, console, |open| {
        open.context = Some(longest + args.tokens);
        open.n_slots = args.sequences;
        open.chunk = args.chunk;
        open.timed = args.timed;
    })?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let chunk = engine.shape().max_rows;
    console.announce(&options.model, engine.name());
    console.report(&format!("memory: {}", engine.plan()));
    let token_bytes = weight_bytes_per_token(&gguf, engine.geometry());
    console.report(&format!(
        "loaded in {:.2} s; a decoded token reads {} of weights",
        load_ms / 1e3,
        units::bytes(token_bytes)
    ));

    let mut tokens = RandomTokens {
        random: ChaCha8Rng::seed_from_u64(SEED),
        n_vocab: engine.geometry().n_vocab as u32,
    };
    let prompt = tokens.take(FIRST_PROMPT.min(longest));
    append(&mut engine, &prompt, chunk, &mut |_| {})?;
    let first_token_ms = started.elapsed().as_secs_f64() * 1e3;
    console.report(&format!(
        "{:.2} s from the start to the first token of a prompt of {}",
        first_token_ms / 1e3,
        units::plural(prompt.len(), "token")
    ));
    engine.clear(0);
    // The first steps touch pages and wake threads; they are not measured.
    console.begin_progress("warming up");
    let mut silent = |_| {};
    append(
        &mut engine,
        &tokens.take(chunk.min(longest)),
        chunk,
        &mut silent,
    )?;
    let few = tokens.take(args.tokens.min(2));
    decode(&mut engine, args.sequences, &few, &mut silent)?;
    for slot in 0..args.sequences {
        engine.clear(slot);
    }
    engine.take_kernel_times();
    console.end_progress();

    if !args.json {
        writeln!(
            out,
            "context,prefill_tokens,prefill_ms,prefill_tps,decode_tokens,decode_ms,decode_tps"
        )?;
    }
    let mut rows = Vec::new();
    for context in contexts {
        let prompt = tokens.take(context - engine.len(0));
        let is_doing = |what: &str, n: usize| {
            let (at, n) = (units::count(context as u64), units::count(n as u64));
            let what = what.to_owned();
            move |done: usize| format!("context {at}: {what} {} of {n}", units::count(done as u64))
        };
        let line = is_doing("prefill", prompt.len());
        console.begin_progress(&line(0));
        let mut show = |done| console.progress(&line(done));
        let prefill = append(&mut engine, &prompt, chunk, &mut show)?;
        let prefill_kernels = engine.take_kernel_times();
        let frontier = engine.frontier(0)?;
        for slot in 1..args.sequences {
            engine.fork(0, slot);
        }
        let line = is_doing("decode", args.tokens);
        console.begin_progress(&line(0));
        let mut show = |done| console.progress(&line(done));
        let new = tokens.take(args.tokens);
        let time = decode(&mut engine, args.sequences, &new, &mut show)?;
        let decode_kernels = engine.take_kernel_times();
        let n_decoded = args.tokens * args.sequences;
        engine.restore(0, &frontier)?;
        console.end_progress();
        let decode_tps = n_decoded as f64 / time.as_secs_f64();
        // Rows of one step share what weights they can; only one row reads what is known.
        let reads = (args.sequences == 1).then(|| Reads {
            weight_bytes: token_bytes,
            row_bytes: row_bytes_per_token(engine.geometry(), context),
            bandwidth: engine.memory_bandwidth(),
            decode_tps,
        });
        let row = Row {
            context,
            prefill_tokens: prompt.len(),
            prefill_ms: prefill.as_secs_f64() * 1e3,
            prefill_tps: prompt.len() as f64 / prefill.as_secs_f64(),
            decode_tokens: n_decoded,
            decode_ms: time.as_secs_f64() * 1e3,
            decode_tps,
            bytes_per_token: reads.as_ref().map(Reads::bytes),
            roofline_share: reads.as_ref().and_then(Reads::share),
        };
        if !args.json {
            writeln!(out, "{row}")?;
            out.flush()?;
        }
        if let Some(reads) = &reads {
            console.report(&format!("context {context}: {reads}"));
        }
        for (what, kernels) in [("prefill", prefill_kernels), ("decode", decode_kernels)] {
            if !kernels.is_empty() {
                console.report(&kernel_table(&format!("{what} at {context}"), &kernels));
            }
        }
        rows.push(row);
    }
    if args.json {
        let document = json!({
            "version": version::SHORT,
            "target": version::TARGET,
            "model": engine.name(),
            "file": name_of(&options.model).display().to_string(),
            "weight_bytes_per_token": weight_bytes_per_token(&gguf, engine.geometry()),
            "chunk": chunk,
            "sequences": args.sequences,
            "load_ms": load_ms,
            "first_token_ms": first_token_ms,
            "rows": rows,
        });
        serde_json::to_writer_pretty(&mut *out, &document)?;
        writeln!(out)?;
    }
    Ok(())
}

/// The options, and the model: a file, or one of random weights.
fn model(args: &BenchArgs) -> Result<(EngineOptions, Gguf)> {
    let options = |model: ModelChoice, engine: &EngineArgs| -> Result<EngineOptions> {
        Ok(EngineOptions {
            model,
            ..EngineOptions::new(engine)?
        })
    };
    match args.weights {
        WeightsArg::File if args.layers.is_some() => {
            bail!("--layers is of random weights: add --weights random")
        }
        WeightsArg::File => {
            let options = EngineOptions::new(&args.engine)?;
            let gguf = open_file(&options.model)?;
            Ok((options, gguf))
        }
        WeightsArg::Random if args.engine.model.is_some() => {
            bail!("--weights random reads no file: leave out -m, or --weights random")
        }
        WeightsArg::Random => {
            let mut geometry = Geometry::flash();
            let n_layers = args.layers.unwrap_or(geometry.layers.len());
            if n_layers > geometry.layers.len() {
                bail!(
                    "--layers {n_layers}: the model has {}",
                    geometry.layers.len()
                );
            }
            geometry.layers.truncate(n_layers);
            geometry.expert_clamp.truncate(n_layers);
            geometry.shared_clamp.truncate(n_layers);
            geometry.n_hash_layers = geometry.n_hash_layers.min(n_layers);
            let named = ModelChoice::File {
                path: "random weights".into(),
                named_by: NamedBy::Flag,
            };
            let gguf = random_model(&geometry);
            Ok((options(named, &args.engine)?, gguf))
        }
    }
}

/// Bytes of cache rows, bf16, that decoding one token reads at a context.
fn row_bytes_per_token(geometry: &Geometry, context: usize) -> u64 {
    let row = 2 * geometry.head_dim;
    let of_layer = |kind: &LayerKind| {
        let window = context.min(geometry.window) * row;
        let n_rows = Geometry::n_compressed(*kind, context);
        window
            + match kind {
                LayerKind::Sliding => 0,
                LayerKind::Csa => {
                    n_rows.min(geometry.index_top_k) * row + n_rows * 2 * geometry.index_dim
                }
                LayerKind::Hca => n_rows * row,
            }
    };
    geometry.layers.iter().map(of_layer).sum::<usize>() as u64
}

/// What decoding one row at a time reads, against what the memory gives.
#[derive(Clone, Copy, Debug)]
struct Reads {
    /// Of a token.
    weight_bytes: u64,
    /// Of a token.
    row_bytes: u64,
    /// Bytes a second of the device, where it is known.
    bandwidth: Option<f64>,
    decode_tps: f64,
}

impl Reads {
    /// Of a token.
    fn bytes(&self) -> u64 {
        self.weight_bytes + self.row_bytes
    }

    /// Of the tokens a second that the bandwidth allows.
    fn share(&self) -> Option<f64> {
        Some(self.bytes() as f64 * self.decode_tps / self.bandwidth?)
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a token reads {} of weights and {} of rows; decode reads {:.0} GB/s",
            units::bytes(self.weight_bytes),
            units::bytes(self.row_bytes),
            self.bytes() as f64 * self.decode_tps / 1e9
        )?;
        if let (Some(bandwidth), Some(share)) = (self.bandwidth, self.share()) {
            write!(
                f,
                ", {:.0} % of the device's {:.0}, which would be {:.0} tokens/s",
                share * 100.0,
                bandwidth / 1e9,
                self.decode_tps / share
            )?;
        }
        Ok(())
    }
}

/// Kernels with their launches, time and share of all, longest first.
fn kernel_table(title: &str, kernels: &[(String, u64, f64)]) -> String {
    let all: f64 = kernels.iter().map(|(_, _, ms)| ms).sum();
    let mut table = format!("{title}: {all:.2} ms in kernels");
    for (name, launches, ms) in kernels {
        let share = ms / all * 100.0;
        table += &format!("\n  {name:24} {launches:8} {ms:12.3} ms {share:6.1} %");
    }
    table
}

/// What was measured at one context.
#[derive(Clone, Copy, Debug, Serialize)]
struct Row {
    context: usize,
    prefill_tokens: usize,
    prefill_ms: f64,
    prefill_tps: f64,
    decode_tokens: usize,
    decode_ms: f64,
    decode_tps: f64,
    /// Read for a decoded token, where one is decoded at a time.
    bytes_per_token: Option<u64>,
    /// Of what the device's bandwidth allows.
    roofline_share: Option<f64>,
}

impl fmt::Display for Row {
    /// A line of CSV.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{},{},{:.3},{:.2},{},{:.3},{:.2}",
            self.context,
            self.prefill_tokens,
            self.prefill_ms,
            self.prefill_tps,
            self.decode_tokens,
            self.decode_ms,
            self.decode_tps,
        )
    }
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

/// Decodes tokens one at a time, the same in each of the first slots, and returns the time; `on` is
/// told after every step how many were decoded.
fn decode(
    engine: &mut Engine,
    n_slots: usize,
    tokens: &[u32],
    on: &mut dyn FnMut(usize),
) -> Result<Duration> {
    let started = Instant::now();
    for (i, token) in tokens.iter().enumerate() {
        let mut batch = Batch::new();
        for slot in 0..n_slots {
            let wanted = Wanted::Candidates { temperature: 1.0 };
            batch.push_wanting(slot, &[*token], Outputs::Last, wanted);
        }
        engine.step(&batch)?;
        on(i + 1);
    }
    Ok(started.elapsed())
}

/// Appends tokens in steps of so many rows and returns the time; `on` is told after every step
/// how many were appended. Logits are computed where a
/// generation would: at the end.
fn append(
    engine: &mut Engine,
    tokens: &[u32],
    n_rows: usize,
    on: &mut dyn FnMut(usize),
) -> Result<Duration> {
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
        on((i * n_rows + chunk.len()).min(tokens.len()));
    }
    Ok(started.elapsed())
}
