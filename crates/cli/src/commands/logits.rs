//! `ds4 logits`: next-token logits of a token list, for comparison with other implementations.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_engine::{Batch, CacheRounding, NotFinite, Outputs};
use serde_json::Value;

use crate::args::LogitsArgs;
use crate::console::Console;
use crate::model::open_engine;
use crate::options::EngineOptions;
use crate::prompt_input::read_text_file;
use crate::units;

/// Runs the command: logits to the file, the likeliest id after every token to `out`, on one
/// line, separated by commas.
///
/// # Errors
/// The tokens cannot be read or are not in the vocabulary, the file cannot be written, the model
/// cannot be opened or run, or its logits are not finite; the file has those before then.
pub(crate) fn run(args: &LogitsArgs, console: &Console, out: &mut dyn Write) -> Result<()> {
    let tokens = match &args.tokens_file {
        Some(path) => read_ids(path)?,
        None => args.tokens.clone(),
    };
    if tokens.is_empty() {
        bail!("there are no tokens: expected at least one id");
    }
    let options = EngineOptions::new(&args.engine)?;
    let failed = || format!("cannot write {}", args.out.display());
    let file = File::create(&args.out).with_context(failed)?;
    let longest = args
        .chunk
        .iter()
        .copied()
        .max()
        .unwrap_or(1)
        .min(tokens.len());
    let mut engine = open_engine(&options, console, |open| {
        open.context = Some(tokens.len());
        open.chunk = Some(longest);
        open.max_outputs = Some(longest);
        if args.no_cache_rounding {
            open.rounding = CacheRounding::Off;
        }
    })?;
    let n_vocab = engine.geometry().n_vocab;
    if let Some(at) = tokens.iter().position(|t| *t as usize >= n_vocab) {
        bail!(
            "token id {} at index {at} is not in the vocabulary of {n_vocab}, whose ids go from 0",
            tokens[at]
        );
    }

    let mut file = BufWriter::new(file);
    let mut argmax = Vec::with_capacity(tokens.len());
    for chunk in chunks(&tokens, &args.chunk) {
        let mut batch = Batch::new();
        batch.push(0, chunk, Outputs::All);
        let logits = engine.step(&batch)?;
        for row in logits.chunks_exact(n_vocab) {
            if row.iter().any(|logit| !logit.is_finite()) {
                file.flush().with_context(failed)?;
                return Err(NotFinite)
                    .with_context(|| format!("after the token at index {}", argmax.len()));
            }
            argmax.push(likeliest(row).to_string());
            for logit in row {
                file.write_all(&logit.to_le_bytes()).with_context(failed)?;
            }
        }
        console.progress(&format!(
            "{} of {}",
            units::count(argmax.len() as u64),
            units::plural(tokens.len(), "token")
        ));
    }
    console.end_progress();
    file.flush().with_context(failed)?;
    writeln!(out, "{}", argmax.join(","))?;
    out.flush()?;
    Ok(())
}

/// Cuts a list into chunks of these sizes; the last size repeats.
fn chunks<'a, T>(list: &'a [T], sizes: &'a [usize]) -> impl Iterator<Item = &'a [T]> {
    let mut rest = list;
    let last = sizes.last().copied().unwrap_or(1).max(1);
    let mut sizes = sizes.iter().copied();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let n = sizes.next().unwrap_or(last).clamp(1, rest.len());
        let (chunk, after) = rest.split_at(n);
        rest = after;
        Some(chunk)
    })
}

/// Index of the largest value, the lowest of equal ones.
pub(crate) fn likeliest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best
}

/// The token ids in a file.
///
/// # Errors
/// It cannot be read or holds something else.
pub(crate) fn read_ids(path: &Path) -> Result<Vec<u32>> {
    let text = read_text_file(path)?;
    parse_ids(&text).with_context(|| path.display().to_string())
}

/// Ids as a JSON array, as an object with one under `ids`, or as numbers between commas and
/// white space.
fn parse_ids(text: &str) -> Result<Vec<u32>> {
    const EXPECTED: &str = "expected token ids: a JSON array, an object with one under \"ids\", \
                            or numbers separated by commas or white space";
    let id = |text: &str| {
        text.parse::<u32>()
            .with_context(|| format!("{text:?} is not a token id; {EXPECTED}"))
    };
    if !text.trim_start().starts_with(['[', '{']) {
        let numbers = text.split(|c: char| c == ',' || c.is_whitespace());
        return numbers.filter(|n| !n.is_empty()).map(id).collect();
    }
    let value: Value = serde_json::from_str(text).context(EXPECTED)?;
    let list = match &value {
        Value::Object(members) => members.get("ids"),
        other => Some(other),
    };
    let list = list.and_then(Value::as_array).context(EXPECTED)?;
    list.iter().map(|value| id(&value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_sizes_cuts_every_token_once_and_repeats_its_last() {
        let list: Vec<u32> = (0..10).collect();
        for (sizes, expected) in [
            (&[1][..], &[1; 10][..]),
            (&[4], &[4, 4, 2]),
            (&[100], &[10]),
            (&[1, 2, 3], &[1, 2, 3, 3, 1]),
            (&[9, 5], &[9, 1]),
        ] {
            let cut: Vec<&[u32]> = chunks(&list, sizes).collect();
            let lengths: Vec<usize> = cut.iter().map(|c| c.len()).collect();
            assert_eq!(lengths, expected, "{sizes:?}");
            assert_eq!(cut.concat(), list, "{sizes:?}");
        }
    }

    #[test]
    fn ids_are_read_from_json_and_from_plain_lists() {
        for text in [
            "[1, 2,3]",
            "1,2,3\n",
            "1 2\n3",
            " {\"ids\": [1,2,3], \"x\": 0}",
        ] {
            assert_eq!(parse_ids(text).unwrap(), [1, 2, 3], "{text:?}");
        }
        assert_eq!(parse_ids("").unwrap(), [] as [u32; 0]);
        for text in [
            "one",
            "1 -2",
            "[1, 2.5]",
            "[1",
            "{\"tokens\": [1]}",
            "{\"ids\": 1}",
            "4294967296",
        ] {
            let error = format!("{:#}", parse_ids(text).unwrap_err());
            assert!(error.contains("token ids"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_first_of_equal_logits_is_the_likeliest() {
        assert_eq!(likeliest(&[1.0, 3.0, 3.0, -1.0]), 1);
        assert_eq!(likeliest(&[-2.0]), 0);
    }
}
