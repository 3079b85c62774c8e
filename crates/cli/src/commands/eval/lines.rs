//! Scoring answers: how likely a continuation is, and which of several is likeliest.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_engine::{Batch, Engine, Outputs};
use ds4_text::{Effort, Message, Mode, RenderOptions, Tokenizer, render};
use serde::Deserialize;
use serde_json::json;

use super::{go_on, log_probabilities};
use crate::args::EvalArgs;
use crate::commands::logits::likeliest;
use crate::console::Console;
use crate::model::{name_of, open_engine, open_tokenizer, revision_of};
use crate::options::EngineOptions;
use crate::prompt_input::read_text_file;
use crate::units;

/// Rows of a step.
const STEP_ROWS: usize = 256;
/// The most tokens of an answer.
const MAX_ANSWER: usize = 1024;

/// A line of the input.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    /// The answer, or with `choices` the index of the right one.
    answer: Answer,
    #[serde(default)]
    choices: Vec<String>,
    #[allow(dead_code)]
    #[serde(default)]
    id: serde_json::Value,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Index(usize),
    Text(String),
}

/// How a line came out; a line of CSV.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    is_choice: bool,
    /// Greedy decoding says the answer; of choices, the likeliest is right.
    is_right: bool,
    n_tokens: usize,
    /// Sum of natural log-probabilities of the answer, or of the right choice.
    log_p: f64,
}

const COLUMNS: &str = "line,kind,right,tokens,logprob";

/// Runs the scoring.
///
/// # Errors
/// A line is not as it should be, the model cannot read it, or a file of an earlier run is of
/// something else; Ctrl+C.
pub(super) fn run(
    path: &Path,
    args: &EvalArgs,
    console: &Console,
    out: &mut dyn Write,
) -> Result<()> {
    let options = EngineOptions::new(&args.engine)?;
    let name = name_of(&options.model);
    let tokenizer = open_tokenizer(&options.model)?;
    let text = read_text_file(path)?;
    let mut items = Vec::new();
    for (i, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let at = || format!("{}, line {}", path.display(), i + 1);
        let line: Line = serde_json::from_str(line).with_context(|| {
            format!(
                "{}: expected {{\"prompt\", \"answer\"}}, or {{\"prompt\", \"choices\", \
                 \"answer\"}} with the index of the right choice",
                at()
            )
        })?;
        items.push(item(&line, &tokenizer, args.chat, &name).with_context(at)?);
    }
    items.truncate(args.chunks.unwrap_or(usize::MAX));
    let longest = items.iter().map(|item| {
        let answer = item.answers.iter().map(Vec::len).max().unwrap_or(0);
        item.prompt.len() + answer
    });
    let context = longest
        .max()
        .with_context(|| format!("{} has no lines", path.display()))?;
    let mut engine = open_engine(&options, console, |open| {
        open.context = Some(context);
        open.chunk = Some(STEP_ROWS.min(context));
        open.max_outputs = Some(STEP_ROWS.min(context));
        // A prompt is read once and its answers are forks of it.
        open.n_slots = 2;
    })?;
    let setting = format!(
        "# ds4 eval 1, lines {:016x}, model {}, chat {}",
        xxhash_rust::xxh3::xxh3_64(text.as_bytes()),
        name.display(),
        args.chat
    );
    let (mut file, mut rows) = open_table(args.out.as_deref(), &setting)?;
    let n_kept = rows.len().min(items.len());
    for (i, item) in items.iter().enumerate().skip(n_kept) {
        console.progress(&format!("{i} of {}", units::plural(items.len(), "line")));
        let row = score(&mut engine, item)?;
        if let Some(file) = &mut file {
            let kind = if row.is_choice {
                "choice"
            } else {
                "continuation"
            };
            let right = u8::from(row.is_right);
            let line = format!("{i},{kind},{right},{},{}\n", row.n_tokens, row.log_p);
            file.write_all(line.as_bytes()).with_context(|| {
                let out = args.out.as_deref().unwrap_or(Path::new("the table"));
                format!("cannot write {}", out.display())
            })?;
        }
        rows.push(row);
    }
    console.end_progress();
    report(
        args,
        &name,
        &rows[..items.len().min(rows.len())],
        n_kept,
        out,
    )
}

/// A line in tokens.
struct Item {
    prompt: Vec<u32>,
    answers: Vec<Vec<u32>>,
    /// The right one of several.
    right: Option<usize>,
}

fn item(line: &Line, tokenizer: &Tokenizer, chat: bool, name: &Path) -> Result<Item> {
    let prompt = if chat {
        let options = RenderOptions {
            mode: Mode::Chat,
            effort: Effort::None,
            revision: revision_of(name, ""),
            ..RenderOptions::default()
        };
        tokenizer.encode_prompt(&render(&[Message::user(&line.prompt)], &options)?)
    } else {
        let mut tokens = vec![tokenizer.protocol().bos];
        tokens.extend(tokenizer.encode_ordinary(&line.prompt));
        tokens
    };
    let (texts, right): (Vec<&str>, _) = match (&line.answer, line.choices.len()) {
        (Answer::Text(text), 0) => (vec![text], None),
        (Answer::Index(i), n) if *i < n => {
            (line.choices.iter().map(String::as_str).collect(), Some(*i))
        }
        (Answer::Index(i), n) => bail!("answer {i} is none of {n} choices"),
        (Answer::Text(_), _) => bail!("with choices, answer is the index of the right one"),
    };
    let answers: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode_ordinary(t)).collect();
    if answers.iter().any(|a| a.is_empty() || a.len() > MAX_ANSWER) {
        bail!("an answer has no tokens, or more than {MAX_ANSWER}");
    }
    Ok(Item {
        prompt,
        answers,
        right,
    })
}

fn score(engine: &mut Engine, item: &Item) -> Result<Row> {
    let n_vocab = engine.geometry().n_vocab;
    engine.clear(0);
    let (last, before) = item
        .prompt
        .split_last()
        .context("a prompt begins with a token")?;
    for chunk in before.chunks(STEP_ROWS) {
        go_on()?;
        let mut batch = Batch::new();
        batch.push(0, chunk, Outputs::None);
        engine.step(&batch)?;
    }
    let mut scores = Vec::new();
    for answer in &item.answers {
        engine.clear(1);
        engine.fork(0, 1);
        // The prompt's last token and all of the answer but its last predict the answer.
        let rows: Vec<u32> = [&[*last], &answer[..answer.len() - 1]].concat();
        let (mut log_p, mut is_greedy) = (0.0, true);
        let mut expected = answer.iter();
        for chunk in rows.chunks(STEP_ROWS) {
            go_on()?;
            let mut batch = Batch::new();
            batch.push(1, chunk, Outputs::All);
            for row in engine.step(&batch)?.chunks_exact(n_vocab) {
                let token = *expected.next().context("a token for every row")?;
                log_p += f64::from(log_probabilities(row)?[token as usize]);
                is_greedy &= likeliest(row) == token as usize;
            }
        }
        scores.push((log_p, is_greedy, answer.len()));
    }
    let best = (0..scores.len()).max_by(|a, b| scores[*a].0.total_cmp(&scores[*b].0));
    let shown = item.right.unwrap_or(0);
    let (log_p, is_greedy, n_tokens) = scores[shown];
    Ok(Row {
        is_choice: item.right.is_some(),
        is_right: item.right.map_or(is_greedy, |right| best == Some(right)),
        n_tokens,
        log_p,
    })
}

/// The lines that are done, and the file that takes the others.
fn open_table(path: Option<&Path>, setting: &str) -> Result<(Option<fs::File>, Vec<Row>)> {
    let Some(path) = path else {
        return Ok((None, Vec::new()));
    };
    let head = format!("{setting}\n{COLUMNS}\n");
    let mut rows = Vec::new();
    let mut whole = head.len() as u64;
    if path.exists() {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let Some(body) = text.strip_prefix(&head) else {
            bail!(
                "{} is already there, of other lines or another model: delete it or name another",
                path.display()
            );
        };
        for line in body.split_inclusive('\n') {
            let Some(row) = line.ends_with('\n').then(|| parse(line)).flatten() else {
                break;
            };
            whole += line.len() as u64;
            rows.push(row);
        }
    } else {
        fs::write(path, &head).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.set_len(whole)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    Ok((Some(file), rows))
}

fn parse(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.trim_end().split(',').collect();
    let [_, kind, right, n_tokens, log_p] = fields[..] else {
        return None;
    };
    Some(Row {
        is_choice: kind == "choice",
        is_right: right == "1",
        n_tokens: n_tokens.parse().ok()?,
        log_p: log_p.parse().ok()?,
    })
}

fn report(
    args: &EvalArgs,
    model: &Path,
    rows: &[Row],
    n_kept: usize,
    out: &mut dyn Write,
) -> Result<()> {
    let summary = |is_choice: bool| {
        let rows: Vec<&Row> = rows.iter().filter(|r| r.is_choice == is_choice).collect();
        let n_right = rows.iter().filter(|r| r.is_right).count();
        let n_tokens: usize = rows.iter().map(|r| r.n_tokens).sum();
        let log_p: f64 = rows.iter().map(|r| r.log_p).sum();
        (rows.len(), n_right, log_p / n_tokens.max(1) as f64)
    };
    let (continuations, choices) = (summary(false), summary(true));
    if args.json {
        let of = |(n, n_right, log_p): (usize, usize, f64)| json!({"n": n, "n_right": n_right, "logprob_per_token": log_p});
        let report = json!({
            "model": model.display().to_string(), "n_kept": n_kept,
            "continuations": of(continuations), "choices": of(choices),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(out, "{}", model.display())?;
    for (what, right, (n, n_right, log_p)) in [
        ("continuation", "said by greedy decoding", continuations),
        ("choice", "right", choices),
    ] {
        if n > 0 {
            writeln!(
                out,
                "  {}: {n_right} {right} ({:.1} %), {log_p:.4} nats a token",
                units::plural(n, what),
                100.0 * n_right as f64 / n as f64
            )?;
        }
    }
    Ok(())
}
