//! `ds4 imatrix`: the importances of all columns, from a text that the model reads.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ds4_engine::Importance;
use ds4_formats::imatrix::Imatrix;
use serde_json::json;

use crate::args::ImatrixArgs;
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::model::{name_of, open_file, open_tokenizer};
use crate::options::EngineOptions;
use crate::prompt_input::read_text_file;
use crate::sums::{check_writable, write_whole};
use crate::{interrupt, units};

/// Matrices that are listed with experts that were never reached.
const MAX_LISTED: usize = 10;

/// Runs the command.
///
/// # Errors
/// The text or the model cannot be read, or the file cannot be written.
pub(crate) fn run(args: &ImatrixArgs, console: &Console, out: &mut dyn Write) -> Result<Answered> {
    let options = EngineOptions::new(&args.engine)?;
    let dataset = args.text.display().to_string();
    let text = read_text_file(&args.text)?;
    let kept = kept(args, &dataset)?;
    check_writable(&args.out)?;
    let tokenizer = open_tokenizer(&options.model)?;
    let tokens = tokenizer.encode_ordinary(&text);
    // Every piece begins as a prompt does.
    let n_text = args.chunk_tokens.saturating_sub(1).max(1);
    let mut chunks: Vec<&[u32]> = tokens.chunks_exact(n_text).collect();
    if chunks.is_empty() {
        bail!(
            "{dataset} has {}, expected at least one piece of {n_text}: give a longer text or a \
             smaller --chunk-tokens",
            units::plural(tokens.len(), "token")
        );
    }
    chunks.truncate(args.chunks.unwrap_or(usize::MAX));
    let n_kept = kept.n_chunks as usize;
    let open = options.open(name_of(&options.model));
    let gguf = open_file(&options.model)?;
    let mut reader = Importance::open(&gguf, &open, args.chunk_tokens.max(2), kept)?;
    interrupt::watch()?;
    let save_interval = Duration::from_secs(args.save_seconds);
    let start = Instant::now();
    let mut last_save = Instant::now();
    let mut stopped = false;
    for (i, chunk) in chunks.iter().enumerate().skip(n_kept) {
        console.progress(&progress(i, n_kept, chunks.len(), start.elapsed()));
        let mut piece = vec![tokenizer.protocol().bos];
        piece.extend_from_slice(chunk);
        reader.read(&piece)?;
        stopped = interrupt::requested();
        if stopped || last_save.elapsed() >= save_interval {
            save(args, reader.imatrix())?;
            last_save = Instant::now();
        }
        if stopped {
            break;
        }
    }
    console.end_progress();
    save(args, reader.imatrix())?;
    if stopped && (reader.imatrix().n_chunks as usize) < chunks.len() {
        console.report(&format!(
            "stopped after {} of {}; the same command goes on from there",
            reader.imatrix().n_chunks,
            units::plural(chunks.len(), "piece")
        ));
        return Ok(Answered::Interrupted);
    }
    report(args, reader.imatrix(), n_kept, start.elapsed(), out)?;
    Ok(Answered::Complete)
}

/// What an earlier run counted of the same text.
fn kept(args: &ImatrixArgs, dataset: &str) -> Result<Imatrix> {
    if !args.out.exists() {
        return Ok(Imatrix {
            datasets: vec![dataset.to_owned()],
            chunk_tokens: args.chunk_tokens as u32,
            ..Imatrix::default()
        });
    }
    let kept = Imatrix::open(&args.out)?;
    if kept.datasets != [dataset] || kept.chunk_tokens as usize != args.chunk_tokens {
        bail!(
            "{} is already there, of {} in pieces of {} tokens: delete it or name another",
            args.out.display(),
            kept.datasets.first().map_or("another text", String::as_str),
            kept.chunk_tokens
        );
    }
    Ok(kept)
}

fn progress(done: usize, n_kept: usize, of: usize, time: Duration) -> String {
    let left = match done - n_kept {
        0 => String::new(),
        n => {
            let left = time.mul_f64((of - done) as f64 / n as f64);
            format!(", {} left", units::age(left))
        }
    };
    format!("{done} of {}{left}", units::plural(of, "piece"))
}

fn save(args: &ImatrixArgs, imatrix: &Imatrix) -> Result<()> {
    write_whole(&args.out, &imatrix.to_gguf()?)
        .with_context(|| format!("cannot write {}", args.out.display()))
}

fn report(
    args: &ImatrixArgs,
    imatrix: &Imatrix,
    n_kept: usize,
    time: Duration,
    out: &mut dyn Write,
) -> Result<()> {
    let missed: Vec<(&str, Vec<usize>)> = imatrix
        .entries
        .iter()
        .map(|(name, columns)| {
            let counts = columns.counts.iter().enumerate();
            let never = counts.filter(|(_, n)| **n == 0.0).map(|(e, _)| e);
            (name.as_str(), never.collect::<Vec<_>>())
        })
        .filter(|(name, never)| !never.is_empty() && name.contains("ffn_gate_exps"))
        .collect();
    if args.json {
        let missed: serde_json::Map<_, _> = missed
            .iter()
            .map(|(name, never)| ((*name).to_owned(), json!(never)))
            .collect();
        let report = json!({
            "file": args.out.display().to_string(), "n_matrices": imatrix.entries.len(),
            "n_chunks": imatrix.n_chunks, "chunk_tokens": imatrix.chunk_tokens,
            "n_kept": n_kept, "never_reached": missed, "seconds": time.as_secs_f64(),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(out, "{}", args.out.display())?;
    writeln!(
        out,
        "  {} matrices, {} of {}",
        imatrix.entries.len(),
        units::plural(imatrix.n_chunks as usize, "piece"),
        units::plural(imatrix.chunk_tokens as usize, "token")
    )?;
    let n_never: usize = missed.iter().map(|(_, never)| never.len()).sum();
    writeln!(out, "  {} never reached", units::plural(n_never, "expert"))?;
    for (name, never) in missed.iter().take(MAX_LISTED) {
        let list: Vec<String> = never.iter().map(ToString::to_string).collect();
        writeln!(out, "    {name}: {}", list.join(" "))?;
    }
    if missed.len() > MAX_LISTED {
        writeln!(out, "    and in {} more layers", missed.len() - MAX_LISTED)?;
    }
    Ok(())
}
