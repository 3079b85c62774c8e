//! An open model that answers conversations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ds4_engine::store::{Store, StoreOptions};
use ds4_engine::{
    Engine, Event, FinishReason, LoadProgress, NotFinite, OpenOptions, Request, SamplingOptions,
    Scheduler, SchedulerOptions, Timings, TokenLogprobs, tokenizer_of,
};
use ds4_formats::gguf::Gguf;
use ds4_model::Geometry;
use ds4_text::{
    Detokenizer, EndReason, Message, Mode, Prompt, RenderOptions, Reply, ReplyParser, Revision,
    Start, Tokenizer, ToolSchemas, markers, render,
};
use serde::{Deserialize, Serialize};

use crate::args::RevisionArg;
use crate::console::Console;
use crate::interrupt;
use crate::model_choice::{BUILT_IN, ModelChoice};
use crate::options::{EngineOptions, Thinking, ThinkingRules};
use crate::reply_writer::printable;
use crate::states;
use crate::units;

/// What the built-in model is called in messages.
const BUILT_IN_NAME: &str = "the built-in model";

/// The file of a choice, mapped and checked.
///
/// # Errors
/// It cannot be read or is not GGUF.
pub(crate) fn open_file(choice: &ModelChoice) -> Result<Gguf> {
    match choice {
        ModelChoice::File { path, .. } => {
            // Opening a pipe would wait for somebody to write to it.
            if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
                bail!(
                    "{}: found a pipe or a device, expected a file",
                    path.display()
                );
            }
            blaming(choice, Gguf::open(path).map_err(Into::into))
        }
        ModelChoice::BuiltIn => {
            let bytes = BUILT_IN.context("this build carries no model")?;
            Gguf::parse(bytes.to_vec().into()).context(BUILT_IN_NAME)
        }
    }
}

/// A failure with who named the file, when it was not named on the command line.
fn blaming<T>(choice: &ModelChoice, result: Result<T>) -> Result<T> {
    match choice.origin() {
        Some(origin) => result.context(origin),
        None => result,
    }
}

/// The context to open: the one asked for, or the model's longest with a warning when more is
/// asked for, as the published guides do whatever the model is.
pub(crate) fn context_within(
    asked: Option<usize>,
    gguf: &Gguf,
    choice: &ModelChoice,
    console: &Console,
) -> Option<usize> {
    let asked = asked?;
    // What is wrong with a file is said by who opens it.
    let Ok(geometry) = Geometry::from_metadata(gguf.metadata()) else {
        return Some(asked);
    };
    let longest = geometry.max_context;
    if asked > longest {
        let name = gguf.metadata().str("general.name").unwrap_or_default();
        let name = match name {
            "" => name_of(choice).display().to_string(),
            name => printable(name).into_owned(),
        };
        console.report(&format!(
            "a context of {asked} tokens is longer than that of {name}: opened with {}",
            units::plural(longest, "token")
        ));
    }
    Some(asked.min(longest))
}

/// The name of a choice in messages.
pub(crate) fn name_of(choice: &ModelChoice) -> PathBuf {
    match choice {
        ModelChoice::File { path, .. } => path.clone(),
        ModelChoice::BuiltIn => PathBuf::from(BUILT_IN_NAME),
    }
}

/// Loads a model, showing how far it is. `adjust` sets what differs from the defaults.
///
/// # Errors
/// The file is not a model this engine runs, or does not fit in memory.
pub(crate) fn open_engine(
    options: &EngineOptions,
    console: &Console,
    adjust: impl FnOnce(&mut OpenOptions),
) -> Result<Engine> {
    let gguf = open_file(&options.model)?;
    open_engine_of(&gguf, options, console, adjust)
}

/// The same for a file that is open.
///
/// # Errors
/// As [`open_engine`].
pub(crate) fn open_engine_of(
    gguf: &Gguf,
    options: &EngineOptions,
    console: &Console,
    adjust: impl FnOnce(&mut OpenOptions),
) -> Result<Engine> {
    let mut open = options.open(name_of(&options.model));
    adjust(&mut open);
    let result = Engine::from_gguf(gguf, &open, &mut |progress| match progress {
        LoadProgress::Bound { n_done, n_bytes } => {
            console.progress(&format!("loading: {} %", n_done * 100 / n_bytes.max(1)));
        }
        LoadProgress::Chosen { what, is_fallback } => match is_fallback {
            // A device that stands idle is worth a word in a log too.
            true => console.report(&what),
            false => console.note(&what),
        },
        LoadProgress::Opened { .. } => {}
    });
    console.end_progress();
    let engine = blaming(&options.model, result.map_err(Into::into))?;
    console.detail(&format!("memory: {}", engine.plan()));
    Ok(engine)
}

/// The tokenizer of a choice's file.
///
/// # Errors
/// The file has none, or one that this engine does not know.
pub(crate) fn open_tokenizer(choice: &ModelChoice) -> Result<Tokenizer> {
    let name = name_of(choice);
    tokenizer_of(&open_file(choice)?, &name)?.with_context(|| no_tokenizer(&name))
}

fn no_tokenizer(name: &Path) -> String {
    format!(
        "{} has no tokenizer, so it cannot read text; `ds4 logits` takes token ids",
        name.display()
    )
}

/// A rendered conversation, ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenPrompt {
    /// Its text.
    pub text: String,
    /// Lengths in bytes and tokens at which replies of the model end in it.
    ends: Vec<(usize, usize)>,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// What the model's first character belongs to.
    pub start: Start,
    /// Maximum thinking was asked for in a context too small for it.
    pub lowered: bool,
}

/// How a reply is generated.
#[derive(Clone, Debug)]
pub(crate) struct ReplyOptions {
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Tokens at most; `None` is up to the end of the context.
    pub max_tokens: Option<usize>,
    /// Likeliest tokens to report for each.
    pub n_logprobs: Option<usize>,
}

/// What becomes known while a reply is generated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Progress<'a> {
    /// Part of the prompt was computed.
    Prefill {
        /// Prompt tokens in the cache.
        n_done: usize,
        /// Prompt tokens.
        n_total: usize,
    },
    /// A token was chosen.
    Token {
        /// The token.
        token: u32,
        /// The model's opinion, if asked for.
        logprobs: Option<&'a TokenLogprobs>,
    },
    /// More reasoning.
    Reasoning(&'a str),
    /// More content.
    Content(&'a str),
}

/// How a reply ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// What was said, whole or up to where it was stopped.
    pub reply: Reply,
    /// Why it ended.
    pub reason: FinishReason,
    /// Where the time went.
    pub timings: Timings,
}

/// A model with its tokenizer and one slot.
pub(crate) struct Model {
    scheduler: Scheduler,
    tokenizer: Arc<Tokenizer>,
    gguf: Gguf,
    options: EngineOptions,
    rules: ThinkingRules,
    revision: Revision,
    spoken: Spoken,
}

/// What was read and said last, in the tokens in which it was: the same text may be cut into
/// others, and a cache knows tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spoken {
    text: String,
    tokens: Vec<u32>,
    /// Lengths in bytes and tokens at which replies end, ascending.
    ends: Vec<(usize, usize)>,
}

impl Spoken {
    /// The ends of replies that a text shares with this one, all in this one's tokens.
    fn shared(&self, text: &str) -> &[(usize, usize)] {
        let n_alike = self
            .text
            .bytes()
            .zip(text.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        // A marker behind a reply is a token of its own, whatever stands before it.
        let is_end = |at: usize| {
            let rest = text.get(at..);
            rest.is_some_and(|rest| {
                rest.is_empty()
                    || rest.starts_with(MARKER)
                    || rest.starts_with(markers::THINK_CLOSE)
            })
        };
        let n = self
            .ends
            .iter()
            .rposition(|(bytes, tokens)| {
                *bytes <= n_alike && *tokens <= self.tokens.len() && is_end(*bytes)
            })
            .map_or(0, |last| last + 1);
        &self.ends[..n]
    }
}

/// How markers between messages begin.
const MARKER: &str = "<｜";

impl Model {
    /// Opens it.
    ///
    /// # Errors
    /// The file is not a model this engine runs, does not fit in memory, or has no tokenizer.
    pub(crate) fn open(
        options: &EngineOptions,
        rules: ThinkingRules,
        context: Option<usize>,
        chunk: Option<usize>,
        console: &Console,
    ) -> Result<Model> {
        let gguf = open_file(&options.model)?;
        let context = context_within(context, &gguf, &options.model, console);
        let engine = open_engine_of(&gguf, options, console, |open| {
            open.context = context;
            open.chunk = chunk;
        })?;
        console.announce(&options.model, engine.name());
        let name = name_of(&options.model);
        let tokenizer = engine.tokenizer().with_context(|| no_tokenizer(&name))?;
        let revision = match rules.revision {
            RevisionArg::Preview => Revision::Preview,
            RevisionArg::R0731 => Revision::R0731,
            RevisionArg::Auto => revision_of(&name, engine.name()),
        };
        console.detail(&format!("prompt revision: {revision:?}"));
        Ok(Model {
            tokenizer: Arc::clone(tokenizer),
            scheduler: Scheduler::new(engine).with_options(SchedulerOptions::responsive()),
            gguf,
            options: options.clone(),
            rules,
            revision,
            spoken: Spoken::default(),
        })
    }

    /// Keeps states of conversations in a folder, over the end of the program too.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub(crate) fn keep_states(self, folder: &Path, budget_bytes: u64) -> Result<Model> {
        let engine = self.scheduler.engine();
        let (key, layout) = states::compat(&self.gguf, engine, &self.tokenizer);
        let options = StoreOptions {
            budget_bytes,
            max_tokens: engine.context(),
            ..StoreOptions::default()
        };
        let store = Store::open(folder, options, key, layout)?;
        Ok(Model {
            scheduler: self.scheduler.with_store(store),
            ..self
        })
    }

    /// Writes the state of the conversation, where states are kept.
    pub(crate) fn save_state(&mut self) {
        self.scheduler.save_all();
    }

    /// What was read and said last.
    pub(crate) fn spoken(&self) -> &Spoken {
        &self.spoken
    }

    /// Takes over what another run read and said, if it is in the tokens of this model.
    pub(crate) fn remember(&mut self, spoken: Spoken) {
        let text = self.tokenizer.decode(&spoken.tokens);
        if text.is_ok_and(|text| text == spoken.text) {
            self.spoken = spoken;
        }
    }

    /// Gives the context up and takes another one, which empties the cache. On an error the
    /// context is as long as it was.
    ///
    /// # Errors
    /// The context does not fit.
    pub(crate) fn reopen(&mut self, context: usize, console: &Console) -> Result<()> {
        let asked = Some(context);
        let within = context_within(asked, &self.gguf, &self.options.model, console);
        Ok(self.scheduler.set_context(within.unwrap_or(context))?)
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &Engine {
        self.scheduler.engine()
    }

    /// Its tokenizer.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of prompt and reply together.
    pub(crate) fn context(&self) -> usize {
        self.engine().context()
    }

    /// Renders a conversation and tokenizes it.
    ///
    /// # Errors
    /// The messages have no rendering.
    pub(crate) fn prompt(&self, messages: &[Message], thinking: Thinking) -> Result<TokenPrompt> {
        let (mode, effort, lowered) = self.rules.resolve(thinking, self.context());
        let options = RenderOptions {
            mode,
            effort,
            revision: self.revision,
            // What was thought stays: a reply after it reads only what is new.
            drop_thinking: false,
            ..RenderOptions::default()
        };
        let prompt: Prompt = render(messages, &options)?;
        let ends = self.spoken.shared(&prompt.text).to_vec();
        let (n_bytes, n_tokens) = ends.last().copied().unwrap_or_default();
        let mut tokens = self.spoken.tokens[..n_tokens].to_vec();
        let rest = prompt.tail(n_bytes).unwrap_or_default();
        tokens.extend(self.tokenizer.encode_prompt(&rest));
        Ok(TokenPrompt {
            tokens,
            ends,
            start: match mode {
                Mode::Chat => Start::Content,
                Mode::Thinking => Start::Reasoning,
            },
            lowered,
            text: prompt.text,
        })
    }

    /// Generates a reply. Ctrl+C ends it within a step; what was said until then is the reply.
    ///
    /// # Errors
    /// The prompt does not fit, the device fails, or `on` does; the reply is lost then.
    pub(crate) fn reply(
        &mut self,
        prompt: &TokenPrompt,
        options: &ReplyOptions,
        on: &mut dyn FnMut(Progress<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let context = self.context();
        let n_prompt = prompt.tokens.len();
        if n_prompt >= context {
            bail!(
                "the prompt has {}, and the context holds {}: shorten it, or open a longer \
                 context with --ctx N",
                units::plural(n_prompt, "token"),
                units::count(context as u64)
            );
        }
        interrupt::clear();
        interrupt::watch()?;
        let protocol = *self.tokenizer.protocol();
        let id = self.scheduler.submit(Request {
            tokens: prompt.tokens.clone(),
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens.unwrap_or(context),
            // A turn that begins is the end of this one.
            stop_tokens: vec![
                protocol.eos,
                protocol.user,
                protocol.assistant,
                protocol.bos,
            ],
            n_logprobs: options.n_logprobs,
            ..Request::default()
        })?;
        let mut text = ReplyText {
            detokenizer: Detokenizer::new(&self.tokenizer),
            parser: ReplyParser::new(prompt.start, ToolSchemas::default()),
        };
        let mut said = Vec::new();
        // The first step may take long: that it is under way is said before it.
        on(Progress::Prefill {
            n_done: 0,
            n_total: n_prompt,
        })?;
        let mut run = || -> Result<(FinishReason, Timings)> {
            loop {
                if interrupt::requested() {
                    self.scheduler.cancel(id);
                }
                for event in self.scheduler.tick()? {
                    match event {
                        Event::Prefill {
                            n_done, n_total, ..
                        } => {
                            on(Progress::Prefill { n_done, n_total })?;
                        }
                        Event::Token {
                            token, logprobs, ..
                        } => {
                            on(Progress::Token {
                                token,
                                logprobs: logprobs.as_ref(),
                            })?;
                            said.push(token);
                            text.push(token, on)?;
                        }
                        Event::Finished {
                            reason: FinishReason::NotFinite,
                            ..
                        } => return Err(NotFinite.into()),
                        Event::Finished {
                            reason, timings, ..
                        } => return Ok((reason, timings)),
                    }
                }
            }
        };
        let result = run();
        interrupt::clear();
        if result.is_err() {
            self.scheduler.cancel(id);
            // Reports of the lost sequence must not reach the next one.
            let _ = self.scheduler.tick();
        }
        let (reason, timings) = result?;
        self.spoken = self.spoken_after(prompt, &said);
        let reply = text.finish(reason, on)?;
        Ok(Outcome {
            reply,
            reason,
            timings,
        })
    }
}

impl Model {
    /// What was read and said after a reply of some tokens.
    fn spoken_after(&self, prompt: &TokenPrompt, said: &[u32]) -> Spoken {
        let mut spoken = Spoken {
            text: prompt.text.clone(),
            tokens: prompt.tokens.clone(),
            ends: prompt.ends.clone(),
        };
        // A reply that ends inside a character has no text of its own.
        if let Ok(text) = self.tokenizer.decode(said) {
            spoken.text.push_str(&text);
            spoken.tokens.extend_from_slice(said);
            spoken.ends.push((spoken.text.len(), spoken.tokens.len()));
        }
        spoken
    }
}

/// Tokens to text to reasoning and content.
struct ReplyText {
    detokenizer: Detokenizer,
    parser: ReplyParser,
}

impl ReplyText {
    fn push(&mut self, token: u32, on: &mut dyn FnMut(Progress<'_>) -> Result<()>) -> Result<()> {
        let text = self.detokenizer.push(token);
        pass_on(&self.parser.push(&text), on)
    }

    fn finish(
        mut self,
        reason: FinishReason,
        on: &mut dyn FnMut(Progress<'_>) -> Result<()>,
    ) -> Result<Reply> {
        let tail = self.detokenizer.finish();
        pass_on(&self.parser.push(&tail), on)?;
        let (events, reply) = self.parser.finish(match reason {
            FinishReason::Stop => EndReason::Stop,
            FinishReason::Length | FinishReason::ContextFull => EndReason::Length,
            FinishReason::Cancelled | FinishReason::NotFinite => EndReason::Cancelled,
        });
        pass_on(&events, on)?;
        Ok(reply)
    }
}

fn pass_on(
    events: &[ds4_text::Event],
    on: &mut dyn FnMut(Progress<'_>) -> Result<()>,
) -> Result<()> {
    for event in events {
        match event {
            ds4_text::Event::ReasoningDelta(text) => on(Progress::Reasoning(text))?,
            ds4_text::Event::ContentDelta(text) => on(Progress::Content(text))?,
            // No tools are declared, so their markup is content.
            _ => {}
        }
    }
    Ok(())
}

/// The release a model is of, by its names and by what lies beside it. The published files do not
/// say it in their metadata.
pub(crate) fn revision_of(path: &Path, model_name: &str) -> Revision {
    let file_name = path.file_name().map(|name| name.to_string_lossy());
    let by_name = file_name.is_some_and(|name| name.contains("0731"));
    let beside = |name: &str, word: &str| {
        let text = path.parent().map(|folder| folder.join(name));
        text.and_then(|path| std::fs::read_to_string(path).ok())
            .is_some_and(|text| text.contains(word))
    };
    if by_name
        || model_name.contains("0731")
        || beside("config.json", "\"dspark_")
        || beside("encoding/encoding_dsv4.py", "Beyond maximum")
    {
        Revision::R0731
    } else {
        Revision::Preview
    }
}

/// The closing line of a reply: what was computed, and how fast.
pub(crate) fn closing_line(outcome: &Outcome) -> String {
    let Timings {
        n_prompt,
        n_cached,
        n_decoded,
        ..
    } = outcome.timings;
    let reason = match outcome.reason {
        FinishReason::Stop => "",
        FinishReason::Length => "; stopped at the limit of -n",
        FinishReason::ContextFull => "; the context is full",
        FinishReason::Cancelled => "; stopped",
        FinishReason::NotFinite => "; the logits are not finite",
    };
    let rate = |n: usize, rate: f64| match n {
        0 => "-".to_owned(),
        _ => format!("{rate:.1}"),
    };
    let n_computed = outcome.timings.n_prefilled();
    let n_new = n_prompt - n_cached;
    let prefill = match n_computed == n_new {
        true => units::plural(n_new, "token"),
        false => format!(
            "{} of {}",
            units::count(n_computed as u64),
            units::plural(n_new, "token")
        ),
    };
    format!(
        "prefill {prefill} at {} t/s, {} cached; decode {} at {} t/s{reason}",
        rate(n_computed, outcome.timings.prefill_rate()),
        units::count(n_cached as u64),
        units::plural(n_decoded, "token"),
        rate(n_decoded.saturating_sub(1), outcome.timings.decode_rate()),
    )
}

#[cfg(test)]
mod tests;
