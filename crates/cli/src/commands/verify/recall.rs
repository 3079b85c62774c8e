//! `ds4 verify --recall`: whether a model finds what stands far back in a long text.
//!
//! Three words are planted in random sentences, near the beginning, in the middle and near the end,
//! and asked for; and a list of random words and numbers that stands in the text begins again at its
//! end, and the model should go on with it. The text is computed once; questions go on from it.

use std::io::Write;

use anyhow::{Context as _, Result, bail};
use ds4_engine::{Batch, Engine, Outputs};
use ds4_text::{Detokenizer, Effort, Message, Mode, RenderOptions, Tokenizer, render};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};

use super::{go_on, write_json};
use crate::args::{self, VerifyArgs};
use crate::commands::logits::likeliest;
use crate::console::Console;
use crate::model::{name_of, open_engine, open_tokenizer, revision_of};
use crate::model_choice::ModelChoice;
use crate::options::EngineOptions;
use crate::units;

/// Rows of a prefill step.
const CHUNK: usize = 512;
/// Tokens of the texts, where none are given.
const LENGTHS: &[usize] = &[11_000, 60_000, 200_000];
/// The same for the built-in model, which was trained on 4,096 tokens.
const SHORT_LENGTHS: &[usize] = &[1500, 3000];
/// The most tokens of an answer.
const MAX_ANSWER: usize = 48;
/// Of the texts.
const SEED: u64 = 11;
/// What is planted, and how far into the text.
const PLANTED: [(&str, f64); 3] = [
    ("code word", 0.1),
    ("password", 0.5),
    ("secret number", 0.9),
];
/// Where the list stands.
const LIST_AT: f64 = 0.3;
/// Entries of the list, and how many of them begin it again.
const LIST: usize = 24;
const BEGUN: usize = 12;

const NOUNS: &[&str] = &[
    "apple", "bridge", "candle", "door", "engine", "feather", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pencil", "quarry", "river",
    "shadow", "table", "umbrella", "valley", "window", "yard",
];
const DOES: &[&str] = &[
    "stands beside",
    "was painted like",
    "is older than",
    "reminds me of",
    "lies behind",
    "was sold with",
    "is heavier than",
    "belongs to",
];

/// A text with what is planted in it.
struct Text {
    text: String,
    /// The answers to [`PLANTED`].
    answers: Vec<String>,
    /// The list, an entry each.
    list: Vec<String>,
}

/// How a model did at a length.
struct Found {
    n_tokens: usize,
    /// What was asked for, whether the reply has it, and the reply.
    asked: Vec<(&'static str, bool, String)>,
    /// Tokens of the list that the model's first choice was, and of those that were left.
    n_continued: usize,
    n_left: usize,
}

/// Runs the questions.
///
/// # Errors
/// The model cannot run them, or, after the report, fewer answers are right than `--min-agreement`
/// asks for.
pub(super) fn run(
    lengths: &str,
    args: &VerifyArgs,
    console: &Console,
    out: &mut dyn Write,
) -> Result<()> {
    let options = EngineOptions::new(&args.engine)?;
    let name = name_of(&options.model);
    let lengths = match (lengths, &options.model) {
        ("", ModelChoice::BuiltIn) => SHORT_LENGTHS.to_vec(),
        ("", _) => LENGTHS.to_vec(),
        (list, _) => parse(list)?,
    };
    let tokenizer = open_tokenizer(&options.model)?;
    let render_options = RenderOptions {
        mode: Mode::Chat,
        effort: Effort::None,
        revision: revision_of(&name, ""),
        ..RenderOptions::default()
    };
    let prompt = |text: &str| -> Result<Vec<u32>> {
        Ok(tokenizer.encode_prompt(&render(&[Message::user(text)], &render_options)?))
    };
    let longest = lengths.iter().copied().max().unwrap_or(0);
    // Beside the text a prompt has a question, and the list begins again.
    let context = longest + 512;
    let mut engine = open_engine(&options, console, |open| {
        open.context = Some(context);
        open.chunk = Some(CHUNK.min(context));
        // The text, and what goes on from it.
        open.n_slots = 2;
        open.max_outputs = Some(CHUNK.min(context));
    })?;
    let mut all = Vec::new();
    for length in lengths {
        let text = Text::new(length, &tokenizer);
        let ends = PLANTED
            .iter()
            .map(|(what, _)| format!("\n\nWhat is the {what}?"))
            .chain([
                format!(" {}", listing(&text.list[..BEGUN])),
                format!(" {}", listing(&text.list)),
            ]);
        let prompts = ends
            .map(|end| prompt(&format!("{}{end}", text.text)))
            .collect::<Result<Vec<_>>>()?;
        all.push(ask(&mut engine, &tokenizer, &text, &prompts, console)?);
    }
    console.end_progress();
    report(&all, args, &name.display().to_string(), out)
}

fn parse(list: &str) -> Result<Vec<usize>> {
    let lengths = list.split(',').map(args::tokens);
    let lengths: Result<Vec<usize>, String> = lengths.collect();
    match lengths {
        Ok(lengths) => Ok(lengths),
        Err(reason) => bail!("--recall={list}: {reason}, in a list such as 11000,60000"),
    }
}

impl Text {
    /// A text of about so many tokens, the same in every run.
    fn new(n_tokens: usize, tokenizer: &Tokenizer) -> Text {
        let mut dice = ChaCha8Rng::seed_from_u64(SEED);
        let mut below = |n: usize| dice.next_u32() as usize % n;
        let list: Vec<String> = (0..LIST)
            .map(|_| format!("{} {}", NOUNS[below(NOUNS.len())], 10 + below(90)))
            .collect();
        let answers: Vec<String> = (0..PLANTED.len())
            .map(|_| format!("{}{}", NOUNS[below(NOUNS.len())], 10 + below(90)))
            .collect();
        let mut sentences = Vec::new();
        let mut n = 0;
        while n < n_tokens {
            let (a, b) = (NOUNS[below(NOUNS.len())], NOUNS[below(NOUNS.len())]);
            let does = DOES[below(DOES.len())];
            let sentence = format!("The {a} number {} {does} the {b}.", below(1000));
            n += tokenizer.encode_ordinary(&format!(" {sentence}")).len();
            sentences.push(sentence);
        }
        let planted = PLANTED.iter().zip(&answers);
        let mut inserted: Vec<(f64, String)> = planted
            .map(|((what, share), answer)| (*share, format!("The {what} is {answer}.")))
            .collect();
        inserted.push((LIST_AT, format!("{}.", listing(&list))));
        // From the end, so that the places before stay.
        inserted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let n = sentences.len();
        for (share, sentence) in inserted {
            sentences.insert((n as f64 * share) as usize, sentence);
        }
        Text {
            text: sentences.join(" "),
            answers,
            list,
        }
    }
}

/// Entries of the list as they stand in the text.
fn listing(entries: &[String]) -> String {
    format!("In the store there are: {}", entries.join(", "))
}

/// Computes the text once, and goes on from it with every question and with the list: `prompts` are
/// the questions, the list where it breaks off, and the whole list.
fn ask(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    text: &Text,
    prompts: &[Vec<u32>],
    console: &Console,
) -> Result<Found> {
    let [questions @ .., begun, whole] = prompts else {
        bail!("there are no prompts");
    };
    let alike = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let first = questions.first().context("there are questions")?;
    let n_shared = prompts.iter().map(|other| {
        let most = first.len().min(other.len()) - 1;
        alike(first, other).min(most)
    });
    let n_shared = n_shared.min().unwrap_or(0);
    let (shared, _) = first.split_at(n_shared);
    engine.clear(0);
    for (i, chunk) in shared.chunks(CHUNK).enumerate() {
        go_on()?;
        console.progress(&format!(
            "{} of {}",
            units::count((i * CHUNK) as u64),
            units::plural(shared.len(), "token")
        ));
        let mut batch = Batch::new();
        batch.push(0, chunk, Outputs::None);
        engine.step(&batch)?;
    }
    let mut asked = Vec::new();
    for (((what, _), answer), question) in PLANTED.iter().zip(&text.answers).zip(questions) {
        console.progress(what);
        let said = reply(engine, tokenizer, &question[n_shared..])?;
        asked.push((*what, said.contains(answer.as_str()), said));
    }
    // What ends the user's words is the same in all prompts and no part of the list.
    let n_tail = {
        let ends = first.iter().rev().zip(whole.iter().rev());
        ends.take_while(|(a, b)| a == b).count()
    };
    let list = &whole[n_shared..whole.len() - n_tail];
    let n_begun = begun.len().saturating_sub(n_shared + n_tail + 1);
    if list.len() < 2 || list.len() > CHUNK {
        bail!("the list has {} tokens, expected 2 to {CHUNK}", list.len());
    }
    engine.clear(1);
    engine.fork(0, 1);
    go_on()?;
    let mut batch = Batch::new();
    batch.push(1, &list[..list.len() - 1], Outputs::All);
    let n_vocab = engine.geometry().n_vocab;
    let logits = engine.step(&batch)?;
    let rows = logits.chunks_exact(n_vocab).zip(&list[1..]);
    let left = rows.skip(n_begun).collect::<Vec<_>>();
    let n_continued = left
        .iter()
        .filter(|(row, token)| likeliest(row) == **token as usize)
        .count();
    Ok(Found {
        n_tokens: shared.len(),
        asked,
        n_continued,
        n_left: left.len(),
    })
}

/// What is said greedily after the shared beginning and `rest`.
fn reply(engine: &mut Engine, tokenizer: &Tokenizer, rest: &[u32]) -> Result<String> {
    engine.clear(1);
    engine.fork(0, 1);
    let mut next = rest.to_vec();
    let mut detokenizer = Detokenizer::new(tokenizer);
    let mut said = String::new();
    for _ in 0..MAX_ANSWER {
        go_on()?;
        let mut batch = Batch::new();
        batch.push(1, &next, Outputs::Last);
        let token = likeliest(engine.step(&batch)?) as u32;
        if token == tokenizer.protocol().eos {
            break;
        }
        said += &detokenizer.push(token);
        next = vec![token];
    }
    Ok(said + &detokenizer.finish())
}

fn report(all: &[Found], args: &VerifyArgs, name: &str, out: &mut dyn Write) -> Result<()> {
    let n_asked: usize = all.iter().map(|f| f.asked.len()).sum();
    let is_right = |f: &Found| f.asked.iter().filter(|(_, is_right, _)| *is_right).count();
    let n_right: usize = all.iter().map(is_right).sum();
    if args.json {
        let lengths: Vec<Value> = all
            .iter()
            .map(|f| {
                let asked = f.asked.iter().map(|(what, is_right, said)| {
                    json!({"what": what, "is_right": is_right, "reply": said})
                });
                json!({
                    "n_tokens": f.n_tokens, "asked": asked.collect::<Vec<_>>(),
                    "n_continued": f.n_continued, "n_left": f.n_left,
                })
            })
            .collect();
        let report = json!({
            "model": name, "lengths": lengths, "n_asked": n_asked, "n_right": n_right,
        });
        write_json(&report, out)?;
    } else {
        writeln!(out, "{name}")?;
        for f in all {
            writeln!(
                out,
                "  {:>7} tokens: {} of {} found, {} of {} tokens of the list continued",
                units::count(f.n_tokens as u64),
                is_right(f),
                f.asked.len(),
                f.n_continued,
                f.n_left
            )?;
            for (what, _, said) in f.asked.iter().filter(|(_, is_right, _)| !is_right) {
                writeln!(out, "    the {what}: {said:?}")?;
            }
        }
        out.flush()?;
    }
    let share = n_right as f64 / n_asked.max(1) as f64;
    if share < args.min_agreement {
        bail!(
            "{:.0} % of what was asked for was found, expected at least {:.0} %",
            100.0 * share,
            100.0 * args.min_agreement
        );
    }
    Ok(())
}
