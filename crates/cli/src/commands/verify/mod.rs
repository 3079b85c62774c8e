//! `ds4 verify`: whether a file is whole, whether a model says what the publisher's says and finds
//! what stands far back, and whether this machine computes what the reference computes.

mod file;
mod recall;
mod self_test;
mod vectors;

use std::io::Write;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::args::VerifyArgs;
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::interrupt;

/// Runs the command.
///
/// # Errors
/// Something is not as it should be, after the report; or it cannot be looked at.
pub(crate) fn run(args: &VerifyArgs, console: &Console, out: &mut dyn Write) -> Result<Answered> {
    interrupt::watch()?;
    let done = match (&args.file, &args.vectors) {
        (Some(path), None) => {
            if args.engine.model.is_some() {
                bail!("FILE is checked by its bytes: leave -m away");
            }
            file::run(path, args, console, out)
        }
        (None, Some(dir)) => vectors::run(dir, args, console, out),
        (None, None) => match &args.recall {
            Some(lengths) => recall::run(lengths, args, console, out),
            None => self_test::run(args, console, out),
        },
        (Some(_), Some(_)) => bail!("--vectors runs a model: name it with -m FILE"),
    };
    console.end_progress();
    match done {
        Err(error) if error.is::<Stopped>() => Ok(Answered::Interrupted),
        other => other.map(|()| Answered::Complete),
    }
}

/// Ctrl+C.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

/// An error after Ctrl+C.
fn go_on() -> Result<()> {
    if interrupt::requested() {
        bail!(Stopped);
    }
    Ok(())
}

fn write_json(document: &Value, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(document)?)?;
    Ok(out.flush()?)
}
