//! `ds4 text`: the text layer over JSON lines, for comparison with other implementations.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use ds4_text::{Tokenizer, door};

use crate::args::{TextDoor, TokenizerArgs};
use crate::model::open_tokenizer;
use crate::model_choice::{ModelChoice, NamedBy};
use crate::prompt_input::read_text_file;

/// Runs the command.
///
/// # Errors
/// The tokenizer cannot be read; or a line that the door does not take, by its number. Lines
/// before it are answered.
pub(crate) fn run(door: &TextDoor, input: &mut dyn BufRead, out: &mut dyn Write) -> Result<()> {
    match door {
        TextDoor::Tokenize(args) => {
            let tokenizer = tokenizer(args)?;
            each_line(input, out, |line| door::tokenize_line(&tokenizer, line))
        }
        TextDoor::Detokenize(args) => {
            let tokenizer = tokenizer(args)?;
            each_line(input, out, |line| door::detokenize_line(&tokenizer, line))
        }
        TextDoor::Render => each_line(input, out, door::render_line),
        TextDoor::Parse => each_line(input, out, door::parse_line),
    }
}

fn each_line(
    input: &mut dyn BufRead,
    out: &mut dyn Write,
    answer: impl Fn(&str) -> Result<String, door::DoorError>,
) -> Result<()> {
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let at = || format!("line {number} of standard input");
        if input.read_line(&mut line).with_context(at)? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        writeln!(out, "{}", answer(&line).with_context(at)?)?;
    }
    out.flush()?;
    Ok(())
}

fn tokenizer(args: &TokenizerArgs) -> Result<Tokenizer> {
    match &args.tokenizer {
        None => open_tokenizer(&ModelChoice::new(None)?),
        Some(path) if is_gguf(path)? => open_tokenizer(&ModelChoice::File {
            path: path.clone(),
            named_by: NamedBy::Flag,
        }),
        Some(path) => Tokenizer::from_tokenizer_json(&read_text_file(path)?)
            .with_context(|| path.display().to_string()),
    }
}

/// Whether a file begins like a GGUF file.
fn is_gguf(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let failed = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(failed)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, 4), &mut head)
        .with_context(failed)?;
    Ok(head == b"GGUF")
}
