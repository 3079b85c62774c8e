//! An open model that answers conversations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ds4_engine::{
    Engine, Event, FinishReason, LoadProgress, OpenOptions, Request, SamplingOptions, Scheduler,
    Timings, TokenLogprobs, tokenizer_of,
};
use ds4_formats::gguf::Gguf;
use ds4_text::{
    Detokenizer, EndReason, Message, Mode, Prompt, RenderOptions, Reply, ReplyParser, Revision,
    Start, Tokenizer, ToolSchemas, render,
};

use crate::args::RevisionArg;
use crate::console::Console;
use crate::interrupt;
use crate::model_choice::{BUILT_IN, ModelChoice};
use crate::options::{EngineOptions, Thinking, ThinkingRules};
use crate::units;

/// What the built-in model is called in messages.
const BUILT_IN_NAME: &str = "the built-in model";

/// The file of a choice, mapped and checked.
///
/// # Errors
/// It cannot be read or is not GGUF.
pub(crate) fn open_file(choice: &ModelChoice) -> Result<Gguf> {
    Ok(match choice {
        ModelChoice::File { path, .. } => Gguf::open(path)?,
        ModelChoice::BuiltIn => {
            let bytes = BUILT_IN.context("this build carries no model")?;
            Gguf::parse(bytes.to_vec().into()).context(BUILT_IN_NAME)?
        }
    })
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
    let mut open = OpenOptions::new(name_of(&options.model));
    open.backend = options.backend;
    open.n_threads = options.n_threads;
    open.simd = options.simd;
    adjust(&mut open);
    let result = Engine::from_gguf(gguf, &open, &mut |progress| {
        if let LoadProgress::Bound { n_done, n_bytes } = progress {
            console.progress(&format!("loading: {} %", n_done * 100 / n_bytes.max(1)));
        }
    });
    console.end_progress();
    let engine = result?;
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
    chunk: usize,
}

impl Model {
    /// Opens it.
    ///
    /// # Errors
    /// The file is not a model this engine runs, does not fit in memory, or has no tokenizer.
    pub(crate) fn open(
        options: &EngineOptions,
        rules: ThinkingRules,
        context: Option<usize>,
        chunk: usize,
        console: &Console,
    ) -> Result<Model> {
        if let Some(banner) = options.model.banner() {
            console.note(&banner);
        }
        let gguf = open_file(&options.model)?;
        let engine = open_engine_of(&gguf, options, console, |open| {
            open.context = context;
            open.chunk = chunk;
        })?;
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
            scheduler: Scheduler::new(engine),
            gguf,
            options: options.clone(),
            rules,
            revision,
            chunk,
        })
    }

    /// Opens it again with another context, which empties the cache. On an error the model is as
    /// it was: the old context is given up when the new one is open.
    ///
    /// # Errors
    /// The context does not fit.
    pub(crate) fn reopen(&mut self, context: usize, console: &Console) -> Result<()> {
        let chunk = self.chunk;
        let engine = open_engine_of(&self.gguf, &self.options, console, |open| {
            open.context = Some(context);
            open.chunk = chunk;
        })?;
        self.scheduler = Scheduler::new(engine);
        Ok(())
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
            ..RenderOptions::default()
        };
        let prompt: Prompt = render(messages, &options)?;
        Ok(TokenPrompt {
            tokens: self.tokenizer.encode_prompt(&prompt),
            start: match mode {
                Mode::Chat => Start::Content,
                Mode::Thinking => Start::Reasoning,
            },
            lowered,
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
        let mut run = || -> Result<(FinishReason, Timings)> {
            loop {
                if interrupt::requested() {
                    self.scheduler.cancel(id);
                }
                for event in self.scheduler.tick()? {
                    match event {
                        Event::Prefill {
                            n_done, n_total, ..
                        } => on(Progress::Prefill { n_done, n_total })?,
                        Event::Token {
                            token, logprobs, ..
                        } => {
                            on(Progress::Token {
                                token,
                                logprobs: logprobs.as_ref(),
                            })?;
                            text.push(token, on)?;
                        }
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
        let reply = text.finish(reason, on)?;
        Ok(Outcome {
            reply,
            reason,
            timings,
        })
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
            FinishReason::Cancelled => EndReason::Cancelled,
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

/// The closing line of a reply.
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
    };
    let rate = |n: usize, rate: f64| match n {
        0 => "-".to_owned(),
        _ => format!("{rate:.1}"),
    };
    format!(
        "prefill {} at {} t/s, {} cached; decode {} at {} t/s{reason}",
        units::plural(n_prompt - n_cached, "token"),
        rate(n_prompt - n_cached, outcome.timings.prefill_rate()),
        units::count(n_cached as u64),
        units::plural(n_decoded, "token"),
        rate(n_decoded.saturating_sub(1), outcome.timings.decode_rate()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_told_by_names_and_by_what_lies_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let plain = at("model.gguf");
        assert_eq!(revision_of(&plain, "DeepSeek V4 Flash"), Revision::Preview);
        assert_eq!(revision_of(&at("model-0731.gguf"), "x"), Revision::R0731);
        assert_eq!(revision_of(&plain, "Flash 0731"), Revision::R0731);
        std::fs::write(at("config.json"), r#"{"vocab_size": 1}"#).unwrap();
        assert_eq!(revision_of(&plain, "x"), Revision::Preview);
        std::fs::write(at("config.json"), r#"{"dspark_block_size": 5}"#).unwrap();
        assert_eq!(revision_of(&plain, "x"), Revision::R0731);
        std::fs::remove_file(at("config.json")).unwrap();
        std::fs::create_dir(at("encoding")).unwrap();
        std::fs::write(at("encoding/encoding_dsv4.py"), "# Beyond maximum").unwrap();
        assert_eq!(revision_of(&plain, "x"), Revision::R0731);
        // A folder name is not the file's name.
        std::fs::create_dir(at("0731")).unwrap();
        assert_eq!(revision_of(&at("0731/model.gguf"), "x"), Revision::Preview);
    }
}
