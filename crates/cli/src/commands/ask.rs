//! Answering one prompt, and what looks into it: `--dump-tokens`, `--dump-logprobs`.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use anyhow::{Context as _, Result};
use ds4_engine::{FinishReason, Timings, TokenLogprobs};
use ds4_text::Tokenizer;
use serde_json::{Value, json};

use crate::console::Console;
use crate::conversation::{Conversation, Turn};
use crate::model::{Model, Outcome, Progress, ReplyOptions, closing_line};
use crate::options::{AskOptions, Logprobs, sampling};
use crate::prompt_input::PromptInput;
use crate::reply_writer::{ReasoningStyle, ReplyWriter};
use crate::units;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// By itself or at a limit.
    Complete,
    /// By Ctrl+C.
    Interrupted,
}

/// Answers a prompt on stdout.
///
/// # Errors
/// The prompt cannot be read or does not fit, or the model cannot be opened or run.
pub(crate) fn answer(
    options: &AskOptions,
    prompt: &PromptInput,
    console: &Console,
) -> Result<Answered> {
    let conversation = conversation(options, prompt)?;
    let mut model = open(options, console)?;
    let (model, none) = (&mut model, &mut |_: u32, _: &TokenLogprobs| {});
    let writer: Box<dyn Shown> = match options.json {
        true => Box::new(Silent),
        false => Box::new(reply_writer(options, console)),
    };
    let outcome = generate(options, model, &conversation, None, console, writer, none)?;
    if options.json {
        let mut text = serde_json::to_string_pretty(&document(model, &outcome))?;
        text.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
    }
    Ok(ended(&outcome))
}

/// The answer as one document.
fn document(model: &Model, outcome: &Outcome) -> Value {
    let Timings {
        n_prompt,
        n_cached,
        n_decoded,
        prefill,
        decode,
        ..
    } = outcome.timings;
    let reason = match outcome.reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context_full",
        FinishReason::Cancelled => "interrupted",
        FinishReason::NotFinite => "not_finite",
    };
    json!({
        "model": model.engine().name(),
        "content": outcome.reply.content,
        "reasoning": outcome.reply.reasoning,
        "finish_reason": reason,
        "ctx": model.context(),
        "prompt_tokens": n_prompt,
        "cached_tokens": n_cached,
        "computed_tokens": outcome.timings.n_prefilled(),
        "generated_tokens": n_decoded,
        "prefill_ms": prefill.as_secs_f64() * 1e3,
        "prefill_tps": outcome.timings.prefill_rate(),
        "decode_ms": decode.as_secs_f64() * 1e3,
        "decode_tps": outcome.timings.decode_rate(),
    })
}

/// Prints the ids and pieces of the rendered prompt, one token a line.
///
/// # Errors
/// The prompt cannot be read, or the model's file has no tokenizer.
pub(crate) fn dump_tokens(
    options: &AskOptions,
    prompt: &PromptInput,
    console: &Console,
    out: &mut dyn Write,
) -> Result<()> {
    let conversation = conversation(options, prompt)?;
    let model = open(options, console)?;
    let prompt = model.prompt(&conversation.messages(), options.settings.thinking)?;
    for token in prompt.tokens {
        let piece = model.tokenizer().token_bytes(token);
        writeln!(out, "{token}\t{}", Value::from(shown(piece)))?;
    }
    out.flush()?;
    Ok(())
}

/// Answers a prompt on stdout and writes the likeliest tokens of every step.
///
/// # Errors
/// As [`answer`], and the file cannot be written.
pub(crate) fn dump_logprobs(
    options: &AskOptions,
    prompt: &PromptInput,
    logprobs: &Logprobs,
    console: &Console,
) -> Result<Answered> {
    let conversation = conversation(options, prompt)?;
    let failed = || format!("cannot write {}", logprobs.path.display());
    let file = File::create(&logprobs.path).with_context(failed)?;
    let mut model = open(options, console)?;
    let tokenizer = model.tokenizer().clone();
    let n_prompt = model
        .prompt(&conversation.messages(), options.settings.thinking)?
        .tokens
        .len();
    let mut steps = Vec::new();
    let writer = Box::new(reply_writer(options, console));
    let outcome = generate(
        options,
        &mut model,
        &conversation,
        Some(logprobs.top_k),
        console,
        writer,
        &mut |token, opinion| steps.push(step(&tokenizer, steps.len(), token, opinion)),
    )?;
    let report = json!({
        "source": "ds4",
        "prompt_tokens": n_prompt,
        "ctx": model.context(),
        "top_k": logprobs.top_k,
        "steps": steps,
    });
    let write = || {
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &report)?;
        file.write_all(b"\n")?;
        file.flush()
    };
    write().with_context(failed)?;
    Ok(ended(&outcome))
}

fn conversation(options: &AskOptions, prompt: &PromptInput) -> Result<Conversation> {
    Ok(Conversation {
        system: options.system.clone(),
        turns: vec![Turn::User {
            content: prompt.read()?,
        }],
    })
}

fn open(options: &AskOptions, console: &Console) -> Result<Model> {
    Model::open(
        &options.engine,
        options.rules,
        options.context,
        options.chunk,
        console,
    )
}

/// What is shown of a reply while it is generated.
trait Shown {
    /// More reasoning.
    fn reasoning(&mut self, text: &str) -> io::Result<()>;
    /// More content.
    fn content(&mut self, text: &str) -> io::Result<()>;
    /// The end.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

impl<W: Write> Shown for ReplyWriter<W> {
    fn reasoning(&mut self, text: &str) -> io::Result<()> {
        ReplyWriter::reasoning(self, text)
    }

    fn content(&mut self, text: &str) -> io::Result<()> {
        ReplyWriter::content(self, text)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        ReplyWriter::finish(*self)
    }
}

/// Nothing: the answer is written when it is complete.
struct Silent;

impl Shown for Silent {
    fn reasoning(&mut self, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn content(&mut self, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

fn reply_writer(options: &AskOptions, console: &Console) -> ReplyWriter<io::StdoutLock<'static>> {
    let style = ReasoningStyle::new(console, options.show_reasoning);
    ReplyWriter::new(io::stdout().lock(), style, console.stdout_is_terminal)
        .wrapped(console.width())
}

fn ended(outcome: &Outcome) -> Answered {
    match outcome.reason {
        FinishReason::Cancelled => Answered::Interrupted,
        _ => Answered::Complete,
    }
}

/// Runs one reply; `each` sees every token with the model's opinion, if asked for.
fn generate(
    options: &AskOptions,
    model: &mut Model,
    conversation: &Conversation,
    n_logprobs: Option<usize>,
    console: &Console,
    mut writer: Box<dyn Shown>,
    each: &mut dyn FnMut(u32, &TokenLogprobs),
) -> Result<Outcome> {
    let prompt = model.prompt(&conversation.messages(), options.settings.thinking)?;
    if prompt.lowered {
        console.report(&lowered_note(
            model.context(),
            options.rules.max_min_context,
        ));
    }
    let reply_options = ReplyOptions {
        sampling: sampling(&options.settings, options.seed),
        max_tokens: options.max_tokens,
        n_logprobs,
    };
    let outcome = model.reply(&prompt, &reply_options, &mut |progress| {
        match progress {
            Progress::Prefill { n_done, n_total } => show_prefill(console, n_done, n_total),
            Progress::Token { token, logprobs } => {
                if let Some(logprobs) = logprobs {
                    each(token, logprobs);
                }
            }
            Progress::Reasoning(text) => writer.reasoning(text)?,
            Progress::Content(text) => writer.content(text)?,
        }
        Ok(())
    })?;
    console.end_progress();
    writer.finish()?;
    console.report(&closing_line(&outcome));
    Ok(outcome)
}

/// Shows how far the prompt is; the line goes when it is complete.
pub(crate) fn show_prefill(console: &Console, n_done: usize, n_total: usize) {
    let line = format!(
        "reading {} of {}",
        units::count(n_done as u64),
        units::plural(n_total, "token")
    );
    if n_done == 0 {
        console.begin_progress(&line);
    } else if n_done < n_total {
        console.progress(&line);
    } else {
        console.end_progress();
    }
}

/// What is said when maximum thinking is lowered.
pub(crate) fn lowered_note(context: usize, min_context: usize) -> String {
    format!(
        "--think-max needs a context of {} tokens and this one holds {}: thinking as with \
         --think; --think-max-min-ctx 0 lifts the limit",
        units::count(min_context as u64),
        units::count(context as u64)
    )
}

fn step(tokenizer: &Tokenizer, number: usize, token: u32, opinion: &TokenLogprobs) -> Value {
    let top: Vec<Value> = opinion
        .top
        .iter()
        .map(|(id, logprob)| json!({"token": token_json(tokenizer, *id), "logprob": logprob}))
        .collect();
    json!({
        "step": number,
        "selected": token_json(tokenizer, token),
        "logprob": opinion.logprob,
        "top_logprobs": top,
    })
}

fn token_json(tokenizer: &Tokenizer, id: u32) -> Value {
    let bytes = tokenizer.token_bytes(id);
    json!({"id": id, "text": shown(bytes), "bytes": bytes})
}

/// A token's bytes as text; of tokens that are cut inside a character, what can be shown.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
