//! `ds4 eval`: how well a model predicts a text, how far it is from another, and which of several
//! answers it finds likeliest.

mod distance;
mod lines;
mod plot;
mod scoring;
mod text;

use std::io::Write;

use anyhow::{Result, bail};

use crate::args::EvalArgs;
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::interrupt;

/// Ctrl+C; what was written stays and is gone on from.
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
/// The input, the model or the files of an earlier run cannot be used.
pub(crate) fn run(args: &EvalArgs, console: &Console, out: &mut dyn Write) -> Result<Answered> {
    interrupt::watch()?;
    let done = match (&args.text, &args.lines) {
        (Some(path), None) => text::run(path, args, console, out),
        (None, Some(path)) => {
            if args.kl.is_some() || args.save_logits.is_some() || args.plot.is_some() {
                bail!("--kl, --save-logits and --plot go with a text, not with --lines");
            }
            lines::run(path, args, console, out)
        }
        _ => bail!("give a text to predict, or --lines FILE with answers to score"),
    };
    console.end_progress();
    match done {
        Err(error) if error.is::<Stopped>() => {
            console.report(match args.out {
                Some(_) => "stopped; the same command goes on from there",
                None => "stopped; with --out FILE the next run goes on from there",
            });
            Ok(Answered::Interrupted)
        }
        other => other.map(|()| Answered::Complete),
    }
}

/// An error after Ctrl+C.
fn go_on() -> Result<()> {
    if interrupt::requested() {
        bail!(Stopped);
    }
    Ok(())
}

/// Natural log-probabilities of a row of logits.
///
/// # Errors
/// A logit is not a number.
fn log_probabilities(logits: &[f32]) -> Result<Vec<f32>> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !largest.is_finite() || logits.iter().any(|x| x.is_nan()) {
        bail!("the model's logits are not numbers; `ds4 verify` checks file and backend");
    }
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let total = f64::from(largest) + sum.ln();
    Ok(logits
        .iter()
        .map(|x| (f64::from(*x) - total) as f32)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_what_is_no_number_is_an_error() {
        let found = log_probabilities(&[1000.0, 1000.0, 0.0]).unwrap();
        assert!((found[0] - 0.5f32.ln()).abs() < 1e-6, "{found:?}");
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(log_probabilities(&[0.0, wrong]).is_err());
        }
    }
}
