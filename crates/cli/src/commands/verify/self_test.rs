//! `ds4 verify --backend NAME`: whether this machine computes what the reference computes.
//!
//! Every op runs at the widths of Flash on random numbers, on the backend and on the reference.
//! The built-in model answers questions whose answers are known, and the logits of a token list long
//! enough for every kind of layer, and for selection among compressed rows, are compared with those
//! of the scalar reference: read in one piece, and read in pieces and token by token.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use ds4_conformance::ops::{Compared, Tolerance, compare, flash_cases};
use ds4_engine::{
    Backend, BackendKind, BackendTask, Batch, CacheRounding, Geometry, OpenError, Outputs,
    on_backend,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};

use super::{go_on, write_json};
use crate::args::VerifyArgs;
use crate::commands::logits::likeliest;
use crate::console::Console;
use crate::conversation::Settings;
use crate::model::{Model, ReplyOptions, open_engine, open_tokenizer};
use crate::model_choice::{BUILT_IN, ModelChoice};
use crate::options::{EngineOptions, Thinking, ThinkingRules, sampling};
use crate::{args, units};

/// Questions, and words of the answers.
const KNOWN: [(&str, &str); 3] = [
    ("What is 17 + 25?", "42"),
    ("What is 8 + 9?", "17"),
    ("What is 60 + 31?", "91"),
];
/// Of the tokens that are compared.
const SEED: u64 = 7;
/// Tokens that are compared: enough that the built-in model selects among its compressed rows
/// (from position 259 on) and finishes rows of 128 tokens twice.
const N_COMPARED: usize = 300;
/// Difference from the reference's logits that half of the positions must stay below, cache
/// rounding off: twice what the CPU's paths measure (0.30), whose activations have 8 bits. Single
/// positions lie beyond any bound, where two experts are nearly as good and another is chosen.
const TOLERANCE: f32 = 0.6;
/// Share of the positions at which the likeliest token must be the reference's.
const AGREEMENT: f64 = 0.9;
/// How the compared text is cut: in one piece, and as awkwardly as a server might.
const CUTS: [&[usize]; 2] = [&[N_COMPARED], &[100, 1, 7, 64, 1, 1]];

/// Runs the test.
///
/// # Errors
/// A result is wrong, after the report; or the backend is not there.
pub(super) fn run(args: &VerifyArgs, console: &Console, out: &mut dyn Write) -> Result<()> {
    if BUILT_IN.is_none() {
        bail!("the self-test needs the built-in model, which this build does not carry");
    }
    if args.engine.model.is_some() {
        bail!("the self-test runs the built-in model: name a FILE to check that, or --vectors DIR");
    }
    let mut options = EngineOptions::new(&args.engine)?;
    options.model = ModelChoice::BuiltIn;
    let start = Instant::now();
    let mut results = match args.quick {
        true => Vec::new(),
        false => every_op(&options, console)?,
    };
    let n_vocab = open_tokenizer(&options.model)?.n_vocab();
    let tokens = tokens(n_vocab);
    console.progress("the reference");
    let mut reference = options.clone();
    (reference.backend, reference.simd) = (BackendKind::Reference, None);
    let expected = logits(&reference, &tokens, CUTS[0], console)?;
    for cut in CUTS {
        console.progress("the backend");
        let found = logits(&options, &tokens, cut, console)?;
        let (middle, agreeing) = compare_logits(&found, &expected, n_vocab);
        let how = match cut.len() {
            1 => "logits of one piece".to_owned(),
            _ => "logits of pieces and single tokens".to_owned(),
        };
        let is_right = middle <= TOLERANCE && agreeing >= AGREEMENT;
        let result = format!(
            "median difference {middle:.4}, {:.0} % of the likeliest tokens agree",
            100.0 * agreeing
        );
        results.push((how, is_right, result));
    }
    results.extend(known_answers(&options, console)?);
    console.end_progress();
    let n_wrong = results.iter().filter(|(_, is_right, _)| !is_right).count();
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let tests: Vec<Value> = results
            .iter()
            .map(|(what, ok, how)| json!({"test": what, "is_right": ok, "result": how}))
            .collect();
        write_json(
            &json!({"tests": tests, "n_wrong": n_wrong, "seconds": seconds}),
            out,
        )?;
    } else {
        for (what, is_right, how) in &results {
            let verdict = if *is_right { "right" } else { "WRONG" };
            writeln!(out, "  {verdict}  {what}: {how}")?;
        }
        writeln!(
            out,
            "  {} in {seconds:.1} s",
            units::plural(results.len(), "test")
        )?;
        out.flush()?;
    }
    if n_wrong > 0 {
        bail!(
            "{} wrong: do not trust what this backend computes on this machine; --backend cpu \
             --simd scalar is the plainest code",
            units::plural(n_wrong, "result")
        );
    }
    Ok(())
}

/// Every op at the widths of Flash, a result for each type of weights and number of rows.
fn every_op(options: &EngineOptions, console: &Console) -> Result<Vec<(String, bool, String)>> {
    on_backend(&options.open("self-test"), EveryOp { console })?
}

/// Compares every op of a backend with the reference's.
struct EveryOp<'a> {
    console: &'a Console,
}

impl BackendTask for EveryOp<'_> {
    type Output = Result<Vec<(String, bool, String)>>;

    fn run<B: Backend>(
        self,
        kind: BackendKind,
        name: &str,
        make: &dyn Fn(&Geometry) -> Result<B, OpenError>,
    ) -> Self::Output {
        // That of the backend's own tests.
        let tolerance = match kind {
            BackendKind::Wgpu => Tolerance::HALF,
            _ => Tolerance::F32,
        };
        let mut results = Vec::new();
        let cases = flash_cases();
        for (i, case) in cases.iter().enumerate() {
            go_on()?;
            let (i, n) = (i + 1, cases.len());
            self.console
                .progress(&format!("ops at the sizes of Flash, {i} of {n}: {case}"));
            let outputs = compare(&mut make(&case.geometry)?, case, &tolerance);
            results.push(verdict(&format!("ops of {name}, {case}"), &outputs));
        }
        Ok(results)
    }
}

/// One result of all ops of a case.
fn verdict(what: &str, outputs: &[Compared]) -> (String, bool, String) {
    let share = |c: &Compared| c.error / c.allowed;
    let sums = outputs.iter().filter(|c| c.allowed > 0.0);
    let worst = sums.max_by(|a, b| share(a).total_cmp(&share(b)));
    let result = match (outputs.iter().find(|c| !c.is_right()), worst) {
        (Some(c), _) if c.allowed == 0.0 => format!("{}: {} values differ", c.op, c.error),
        (Some(c), _) => format!("{}: {:.1e} off, at most {:.1e}", c.op, c.error, c.allowed),
        (None, worst) => format!(
            "{} outputs, errors up to {:.0} % of what is allowed",
            outputs.len(),
            100.0 * worst.map_or(0.0, share)
        ),
    };
    let is_right = outputs.iter().all(Compared::is_right);
    (what.to_owned(), is_right, result)
}

/// Tokens of the built-in model's vocabulary, the same in every run.
fn tokens(n_vocab: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    (0..N_COMPARED)
        .map(|_| random.next_u32() % n_vocab as u32)
        .collect()
}

/// Logits at every position.
fn logits(
    options: &EngineOptions,
    tokens: &[u32],
    cut: &[usize],
    console: &Console,
) -> Result<Vec<f32>> {
    let largest = cut.iter().copied().max().unwrap_or(1).min(tokens.len());
    let mut engine = open_engine(options, console, |open| {
        open.context = Some(tokens.len());
        open.chunk = Some(largest);
        open.max_outputs = Some(largest);
        open.rounding = CacheRounding::Off;
    })?;
    let mut out = Vec::new();
    let mut rest = tokens;
    let mut sizes = cut.iter().cycle();
    while !rest.is_empty() {
        go_on()?;
        let n = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        let (chunk, after) = rest.split_at(n);
        let mut batch = Batch::new();
        batch.push(0, chunk, Outputs::All);
        out.extend_from_slice(engine.step(&batch)?);
        rest = after;
    }
    Ok(out)
}

/// Over positions: the median of the largest difference of a logit, infinite where anything is not
/// a number; and the share at which the likeliest token is the same.
fn compare_logits(found: &[f32], expected: &[f32], n_vocab: usize) -> (f32, f64) {
    if found.len() != expected.len() || expected.is_empty() {
        return (f32::INFINITY, 0.0);
    }
    let rows = || {
        found
            .chunks_exact(n_vocab)
            .zip(expected.chunks_exact(n_vocab))
    };
    let largest = |(a, b): (&[f32], &[f32])| {
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        let or_infinite = |d: f32| if d.is_nan() { f32::INFINITY } else { d };
        differences.map(or_infinite).fold(0.0, f32::max)
    };
    let mut middle: Vec<f32> = rows().map(largest).collect();
    middle.sort_by(f32::total_cmp);
    let n_agreeing = rows().filter(|(a, b)| likeliest(a) == likeliest(b)).count();
    (
        middle[middle.len() / 2],
        n_agreeing as f64 / middle.len() as f64,
    )
}

/// Greedy answers of the built-in model.
fn known_answers(
    options: &EngineOptions,
    console: &Console,
) -> Result<Vec<(String, bool, String)>> {
    let rules = ThinkingRules {
        effort: ds4_text::Effort::High,
        max_min_context: 0,
        revision: args::RevisionArg::Preview,
    };
    let quiet = Console::new(args::VerbosityArgs {
        quiet: true,
        verbose: false,
    });
    let mut model = Model::open(options, rules, Some(512), Some(256), &quiet)?;
    let settings = Settings {
        thinking: Thinking::Off,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };
    let mut results = Vec::new();
    for (question, word) in KNOWN {
        go_on()?;
        console.progress(question);
        let prompt = model.prompt(&[ds4_text::Message::user(question)], Thinking::Off)?;
        let reply_options = ReplyOptions {
            sampling: sampling(&settings, None),
            max_tokens: Some(64),
            n_logprobs: None,
        };
        let outcome = model.reply(&prompt, &reply_options, &mut |_| Ok(()))?;
        let said = outcome.reply.content;
        let is_right = said.contains(word);
        results.push((format!("{question:?}"), is_right, format!("{said:?}")));
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_names_the_first_op_that_is_wrong() {
        let output = |op: &str, error, allowed| Compared {
            op: op.to_owned(),
            error,
            allowed,
        };
        let right = [output("a", 0.0, 0.0), output("b", 1e-5, 2e-5)];
        let (_, is_right, how) = verdict("x", &right);
        assert!(
            is_right && how.contains("2 outputs") && how.contains("50 %"),
            "{how}"
        );
        for (wrong, words) in [
            (output("b", f32::NAN, 2e-5), "b: NaN off"),
            (output("b", 3e-5, 2e-5), "b: 3.0e-5 off, at most 2.0e-5"),
            (output("c", 4.0, 0.0), "c: 4 values differ"),
        ] {
            let (_, is_right, how) = verdict("x", &[right[0].clone(), wrong]);
            assert!(!is_right && how.contains(words), "{how}");
        }
    }
}
