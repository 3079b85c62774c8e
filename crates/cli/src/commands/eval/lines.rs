//! Scoring answers: how likely a continuation is, and which of several is likeliest.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_engine::Request;
use ds4_text::{Effort, Message, Mode, RenderOptions, Tokenizer, render};
use serde::Deserialize;
use serde_json::json;

use super::log_probabilities;
use super::scoring::{self, Scored};
use crate::args::EvalArgs;
use crate::commands::logits::likeliest;
use crate::console::Console;
use crate::model::{name_of, open_engine, open_tokenizer, revision_of};
use crate::options::EngineOptions;
use crate::prompt_input::read_text_file;
use crate::units;

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
    let n_answers = items.iter().map(|item| item.answers.len()).sum();
    let engine = open_engine(&options, console, |open| {
        scoring::plan(open, n_answers, context);
    })?;
    let setting = format!(
        "# ds4 eval 1, lines {:016x}, model {}, chat {}",
        xxhash_rust::xxh3::xxh3_64(text.as_bytes()),
        name.display(),
        args.chat
    );
    let (mut file, mut rows) = open_table(args.out.as_deref(), &setting)?;
    let n_kept = rows.len().min(items.len());
    // Every answer is a prompt: what was said, and the answer but for its last token.
    let answers: Vec<(usize, &[u32])> = items
        .iter()
        .enumerate()
        .skip(n_kept)
        .flat_map(|(i, item)| item.answers.iter().map(move |a| (i, &a[..])))
        .collect();
    let prompts = answers.iter().map(|(i, answer)| {
        let prompt = &items[*i].prompt;
        Request {
            tokens: [&prompt[..], &answer[..answer.len() - 1]].concat(),
            // The prompt's last token predicts the answer's first; the rest is read once.
            anchors: vec![prompt.len() - 1],
            scored_from: Some(prompt.len() - 1),
            ..Request::default()
        }
    });
    let mut under_way: BTreeMap<usize, Answered> = BTreeMap::new();
    let progress = |n_done: usize| format!("{n_done} of {}", units::plural(items.len(), "line"));
    console.progress(&progress(n_kept));
    scoring::run(engine, prompts, &mut |number, scored| {
        let (i, answer) = answers[number];
        match scored {
            Scored::Row { at, logits } => {
                let token = answer[at + 1 - items[i].prompt.len()];
                let log_p = log_probabilities(logits)?;
                under_way
                    .entry(number)
                    .or_default()
                    .add(log_p[token as usize], likeliest(logits) == token as usize);
            }
            Scored::End => under_way.entry(number).or_default().is_whole = true,
        }
        // Lines are written in order, each when all of its answers are there.
        while let Some(item) = items.get(rows.len())
            && let Some((&first, _)) = under_way.first_key_value()
            && answers[first].0 == rows.len()
        {
            let of_line = first..first + item.answers.len();
            if !of_line
                .clone()
                .all(|n| under_way.get(&n).is_some_and(|a| a.is_whole))
            {
                break;
            }
            let scores: Vec<Answered> = of_line.filter_map(|n| under_way.remove(&n)).collect();
            let row = chosen(item, &scores);
            put(&mut file, rows.len(), &row, args)?;
            rows.push(row);
            console.progress(&progress(rows.len()));
        }
        Ok(())
    })?;
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

/// An answer that is being computed.
#[derive(Clone, Copy, Debug)]
struct Answered {
    log_p: f64,
    n_tokens: usize,
    is_greedy: bool,
    is_whole: bool,
}

impl Default for Answered {
    fn default() -> Answered {
        Answered {
            log_p: 0.0,
            n_tokens: 0,
            is_greedy: true,
            is_whole: false,
        }
    }
}

impl Answered {
    fn add(&mut self, log_p: f32, is_likeliest: bool) {
        self.log_p += f64::from(log_p);
        self.n_tokens += 1;
        self.is_greedy &= is_likeliest;
    }
}

/// What the answers of a line come to.
fn chosen(item: &Item, scores: &[Answered]) -> Row {
    let best = (0..scores.len()).max_by(|a, b| scores[*a].log_p.total_cmp(&scores[*b].log_p));
    let shown = scores[item.right.unwrap_or(0)];
    Row {
        is_choice: item.right.is_some(),
        is_right: item
            .right
            .map_or(shown.is_greedy, |right| best == Some(right)),
        n_tokens: shown.n_tokens,
        log_p: shown.log_p,
    }
}

/// Writes a line of the table, where there is one.
fn put(file: &mut Option<fs::File>, i: usize, row: &Row, args: &EvalArgs) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    let kind = match row.is_choice {
        true => "choice",
        false => "continuation",
    };
    let right = u8::from(row.is_right);
    let line = format!("{i},{kind},{right},{},{}\n", row.n_tokens, row.log_p);
    file.write_all(line.as_bytes()).with_context(|| {
        let out = args.out.as_deref().unwrap_or(Path::new("the table"));
        format!("cannot write {}", out.display())
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
