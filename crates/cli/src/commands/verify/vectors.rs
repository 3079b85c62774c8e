//! `ds4 verify --vectors DIR`: whether the model continues the publisher's prompts as the publisher
//! does.
//!
//! The expected continuation is fed token by token, so that one disagreement does not hide those
//! after it.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_engine::{Batch, Engine, Outputs};
use ds4_text::{Effort, Message, Mode, RenderOptions, Tokenizer, render};
use serde_json::{Value, json};

use super::{go_on, write_json};
use crate::args::VerifyArgs;
use crate::console::Console;
use crate::model::{name_of, open_engine, revision_of};
use crate::options::EngineOptions;
use crate::prompt_input::read_text_file;
use crate::units;

/// Rows of a prefill step.
const CHUNK: usize = 512;
/// First line of the file of cases.
const HEADER: &str = "# ds4-official-logprob-vectors-v1";
/// The file of cases.
const CASES: &str = "official.vec";

/// A prompt and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    id: String,
    /// Name of the prompt's file in the folder `prompts`.
    prompt: String,
    /// The bytes of each greedy token.
    tokens: Vec<Vec<u8>>,
}

/// How a model did at a case.
struct Scored {
    id: String,
    n_prompt: usize,
    /// Prompt tokens that the publisher counted.
    n_expected: Option<u64>,
    /// For each token: how much likelier, in natural log-probability, the model's own choice is
    /// than the publisher's; 0 where they are the same.
    gaps: Vec<f64>,
}

impl Scored {
    fn n_agreeing(&self) -> usize {
        self.gaps.iter().filter(|gap| **gap == 0.0).count()
    }
}

/// Runs the comparison.
///
/// # Errors
/// The folder does not hold vectors, the model cannot run them, or, after the report, fewer tokens
/// agree than `--min-agreement` asks for.
pub(super) fn run(
    dir: &Path,
    args: &VerifyArgs,
    console: &Console,
    out: &mut dyn Write,
) -> Result<()> {
    let text = fs::read_to_string(dir.join(CASES)).with_context(|| {
        format!(
            "{}: expected a folder with {CASES} and prompts in it",
            dir.join(CASES).display()
        )
    })?;
    let cases = parse(&text).with_context(|| dir.join(CASES).display().to_string())?;
    let options = EngineOptions::new(&args.engine)?;
    let name = name_of(&options.model);
    // What is open says how its prompts are written and how long they are.
    let tokenizer = crate::model::open_tokenizer(&options.model)?;
    let mut prompts = Vec::new();
    for case in &cases {
        let path = dir.join("prompts").join(&case.prompt);
        let tokens = prompt_tokens(&tokenizer, &read_text_file(&path)?, &name)?;
        prompts.push(tokens);
    }
    let longest = prompts
        .iter()
        .zip(&cases)
        .map(|(p, c)| p.len() + c.tokens.len());
    let context = longest.max().context("there are no cases")?;
    let mut engine = open_engine(&options, console, |open| {
        open.context = Some(context);
        open.chunk = Some(CHUNK.min(context));
    })?;
    let mut scored = Vec::new();
    for (case, prompt) in cases.iter().zip(&prompts) {
        let tokens = ids(&tokenizer, case);
        scored.push(match tokens {
            None => Err(case.id.clone()),
            Some(tokens) => Ok(Scored {
                id: case.id.clone(),
                n_prompt: prompt.len(),
                n_expected: published_count(dir, &case.id),
                gaps: gaps(&mut engine, prompt, &tokens, &case.id, console)?,
            }),
        });
    }
    console.end_progress();
    report(&scored, args, &name, out)
}

/// Reads the file of cases.
fn parse(text: &str) -> Result<Vec<Case>> {
    if text.lines().next().map(str::trim) != Some(HEADER) {
        bail!("expected the first line {HEADER:?}");
    }
    let mut cases: Vec<Case> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let wrong = || format!("line {}: {line:?}", i + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["case", id, _, _, prompt] => cases.push(Case {
                id: id.to_owned(),
                // The paths are those of another project's tree.
                prompt: prompt.rsplit('/').next().unwrap_or(prompt).to_owned(),
                tokens: Vec::new(),
            }),
            ["step", _, token, _] => {
                let case = cases.last_mut().with_context(wrong)?;
                case.tokens.push(from_hex(token).with_context(wrong)?);
            }
            ["case" | "step", ..] => bail!(wrong()),
            // Alternatives: the service states no probabilities at temperature 0.
            _ => {}
        }
    }
    Ok(cases)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok())
        .collect()
}

/// The prompt as the publisher's service renders it: thinking off, no system text.
fn prompt_tokens(tokenizer: &Tokenizer, text: &str, name: &Path) -> Result<Vec<u32>> {
    let options = RenderOptions {
        mode: Mode::Chat,
        effort: Effort::None,
        revision: revision_of(name, ""),
        ..RenderOptions::default()
    };
    Ok(tokenizer.encode_prompt(&render(&[Message::user(text)], &options)?))
}

/// The token for each piece of bytes; `None` when the vocabulary lacks one, which is another
/// model's.
fn ids(tokenizer: &Tokenizer, case: &Case) -> Option<Vec<u32>> {
    let id = |bytes: &Vec<u8>| {
        (0..tokenizer.n_vocab() as u32).find(|&id| tokenizer.token_bytes(id) == &bytes[..])
    };
    case.tokens.iter().map(id).collect()
}

/// Prompt tokens that the publisher's service counted, if the folder has its answer.
fn published_count(dir: &Path, id: &str) -> Option<u64> {
    let path = dir.join("official").join(format!("{id}.official.json"));
    let answer: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    answer["usage"]["prompt_tokens"].as_u64()
}

fn gaps(
    engine: &mut Engine,
    prompt: &[u32],
    tokens: &[u32],
    id: &str,
    console: &Console,
) -> Result<Vec<f64>> {
    engine.clear(0);
    let mut gaps = Vec::new();
    let mut n_done = 0;
    let mut logits = Vec::new();
    for chunk in prompt.chunks(CHUNK) {
        go_on()?;
        console.progress(&format!(
            "{id}: {} of {}",
            units::count(n_done as u64),
            units::plural(prompt.len(), "token")
        ));
        n_done += chunk.len();
        let is_last = n_done == prompt.len();
        let mut batch = Batch::new();
        batch.push(
            0,
            chunk,
            if is_last {
                Outputs::Last
            } else {
                Outputs::None
            },
        );
        logits = engine.step(&batch)?.to_vec();
    }
    for (i, &token) in tokens.iter().enumerate() {
        go_on()?;
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = *logits
            .get(token as usize)
            .context("a token of the vocabulary")?;
        if !best.is_finite() || !own.is_finite() {
            bail!("{id}: the model's logits are not numbers; `ds4 verify` checks the backend");
        }
        gaps.push(f64::from(best) - f64::from(own));
        if i + 1 < tokens.len() {
            let mut batch = Batch::new();
            batch.push(0, &[token], Outputs::Last);
            logits = engine.step(&batch)?.to_vec();
        }
    }
    Ok(gaps)
}

fn report(
    scored: &[Result<Scored, String>],
    args: &VerifyArgs,
    name: &Path,
    out: &mut dyn Write,
) -> Result<()> {
    let done: Vec<&Scored> = scored.iter().flatten().collect();
    let n_agreeing: usize = done.iter().map(|s| s.n_agreeing()).sum();
    let n_tokens: usize = done.iter().map(|s| s.gaps.len()).sum();
    let largest = done
        .iter()
        .flat_map(|s| &s.gaps)
        .copied()
        .fold(0.0, f64::max);
    let share = n_agreeing as f64 / n_tokens.max(1) as f64;
    let miscounted: Vec<&str> = done
        .iter()
        .filter(|s| s.n_expected.is_some_and(|n| n != s.n_prompt as u64))
        .map(|s| s.id.as_str())
        .collect();
    if args.json {
        let cases: Vec<Value> = scored
            .iter()
            .map(|s| match s {
                Err(id) => json!({"id": id, "skipped": "its tokens are not in the vocabulary"}),
                Ok(s) => json!({
                    "id": s.id, "n_prompt": s.n_prompt, "n_prompt_published": s.n_expected,
                    "n_tokens": s.gaps.len(), "n_agreeing": s.n_agreeing(), "gaps": s.gaps,
                }),
            })
            .collect();
        let report = json!({
            "model": name.display().to_string(), "cases": cases, "n_tokens": n_tokens,
            "n_agreeing": n_agreeing, "largest_gap": largest,
        });
        write_json(&report, out)?;
    } else {
        writeln!(out, "{}", name.display())?;
        for s in scored {
            match s {
                Err(id) => writeln!(out, "  {id:24} its tokens are not in this vocabulary")?,
                Ok(s) => writeln!(
                    out,
                    "  {:24} {:>6} prompt tokens{}, {} of {} agree, largest gap {:.3}",
                    s.id,
                    units::count(s.n_prompt as u64),
                    match s.n_expected {
                        Some(n) if n != s.n_prompt as u64 => format!(" (the publisher counts {n})"),
                        _ => String::new(),
                    },
                    s.n_agreeing(),
                    s.gaps.len(),
                    s.gaps.iter().copied().fold(0.0, f64::max),
                )?,
            }
        }
        writeln!(
            out,
            "\n  {n_agreeing} of {n_tokens} tokens agree ({:.0} %), largest gap {largest:.3}",
            100.0 * share
        )?;
        writeln!(
            out,
            "  The prompts are such that full precision, 4 bits and 2 bits with an importance \
             matrix are\n  expected to agree throughout; a gap below 0.5 is a near tie, a large \
             one an error."
        )?;
        out.flush()?;
    }
    if n_tokens == 0 {
        bail!(
            "{}: no case could be run: its vocabulary is not the one of DeepSeek V4",
            name.display()
        );
    }
    if let Some(id) = miscounted.first() {
        bail!(
            "{id}: the prompt has another number of tokens than the publisher counts: the tokenizer is wrong"
        );
    }
    if share < args.min_agreement {
        bail!(
            "{:.0} % of the tokens agree, expected at least {:.0} %",
            100.0 * share,
            100.0 * args.min_agreement
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_with_the_bytes_of_their_tokens() {
        let text = format!(
            "{HEADER}\n\ncase a 16 2 x/y/a.txt\nstep 0 416c 1\ntop 416c 0\nstep 1 20 1\nend\n"
        );
        let cases = parse(&text).unwrap();
        let tokens = vec![b"Al".to_vec(), b" ".to_vec()];
        let expected = Case {
            id: "a".into(),
            prompt: "a.txt".into(),
            tokens,
        };
        assert_eq!(cases, [expected]);
        for wrong in [
            "",
            "x",
            &format!("{HEADER}\nstep 0 41 1"),
            &format!("{HEADER}\ncase a 1 1 p\nstep 0 4x 1"),
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
