//! `ds4 quantize`: a GGUF file from a checkpoint or from another.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use ds4_formats::imatrix::Imatrix;
use serde_json::json;

use crate::args::{MixArg, QuantizeArgs};
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::quantize::{Mix, Order, Override, Progress, make};
use crate::{interrupt, units};

/// Ctrl+C.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

/// Runs the command.
///
/// # Errors
/// The source cannot be read or lacks something, or the file cannot be written.
pub(crate) fn run(args: &QuantizeArgs, console: &Console, out: &mut dyn Write) -> Result<Answered> {
    let imatrix = match &args.imatrix {
        Some(path) => Some((Imatrix::open(path)?, path.display().to_string())),
        None => None,
    };
    let overrides: Result<Vec<Override>> = args.types.iter().map(|t| Override::parse(t)).collect();
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let order = Order {
        source: args.source.clone(),
        out: args.out.clone(),
        mix: match args.mix {
            MixArg::Q2 => Mix::Q2,
            MixArg::Q2Q4 => Mix::Q2Q4,
            MixArg::Q4 => Mix::Q4,
            MixArg::Mxfp4 => Mix::Mxfp4,
            MixArg::Keep => Mix::Keep,
        },
        overrides: overrides?,
        imatrix,
        drafts: args.draft,
        n_threads: args.threads.unwrap_or(n_cores),
    };
    interrupt::watch()?;
    let start = Instant::now();
    let made = make(&order, &mut |progress| {
        if interrupt::requested() {
            bail!(Stopped);
        }
        let percent = |n: u64, of: u64| n * 100 / of.max(1);
        console.progress(&match progress {
            Progress::Encoding {
                name,
                n_done,
                n_total,
            } => format!(
                "{} % of {}: {name}",
                percent(n_done, n_total),
                units::bytes(n_total)
            ),
            Progress::Summing { n_done, n_total } => {
                format!("sums: {} %", percent(n_done, n_total))
            }
        });
        Ok(())
    });
    console.end_progress();
    let made = match made {
        Err(error) if error.is::<Stopped>() => {
            console.report("stopped; the same command goes on after the last whole tensor");
            return Ok(Answered::Interrupted);
        }
        other => other?,
    };
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let mut report = serde_json::to_value(&made)?;
        report["file"] = json!(args.out.display().to_string());
        report["seconds"] = json!(seconds);
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(Answered::Complete);
    }
    writeln!(out, "{}", args.out.display())?;
    let types: Vec<String> = made
        .types
        .iter()
        .map(|(ty, n)| format!("{n} {ty}"))
        .collect();
    writeln!(
        out,
        "  {} in {} ({}); SHA-256 {}",
        units::bytes(made.n_bytes),
        units::plural(made.n_tensors, "tensor"),
        types.join(", "),
        made.sha256
    )?;
    if made.n_kept > 0 {
        writeln!(
            out,
            "  {} were there from an earlier run",
            units::plural(made.n_kept, "tensor")
        )?;
    }
    writeln!(
        out,
        "  {} weights encoded in {seconds:.1} s; matrices searched with importances: {}, without: {}",
        units::count(made.n_encoded),
        units::count(made.n_weighted),
        units::count(made.n_unweighted)
    )?;
    out.flush()?;
    Ok(Answered::Complete)
}
