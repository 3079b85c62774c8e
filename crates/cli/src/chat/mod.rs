//! The interactive conversation.

mod command;
mod input;
mod multiline;

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Result, bail};
use ds4_engine::FinishReason;

use crate::commands::ask::{lowered_note, show_prefill};
use crate::console::Console;
use crate::conversation::{self, Conversation, Settings, Turn};
use crate::model::{Model, Outcome, Progress, ReplyOptions, closing_line};
use crate::options::{AskOptions, sampling};
use crate::prompt_input::read_text_file;
use crate::reply_writer::{ReasoningStyle, ReplyWriter, printable};
use crate::units;

use command::Command;
use input::{Entry, Input};

/// Holds a conversation until the user leaves.
///
/// # Errors
/// The model cannot be opened, or the terminal fails. What goes wrong in a turn is reported and
/// the conversation goes on.
pub(crate) fn run(options: &AskOptions, console: &Console) -> Result<()> {
    let model = Model::open(
        &options.engine,
        options.rules,
        options.context,
        options.chunk,
        console,
    )?;
    console.note(&format!(
        "{}, a context of {} tokens; /help lists the commands",
        printable(model.engine().name()),
        units::count(model.context() as u64)
    ));
    let mut chat = Chat {
        conversation: Conversation {
            system: options.system.clone(),
            turns: Vec::new(),
        },
        settings: options.settings,
        attached: None,
        last: None,
        lowering_told: false,
        model,
        options,
        console,
    };
    let mut input = Input::new(console)?;
    loop {
        let entry = input.read()?;
        let done = match entry {
            Entry::End => return Ok(()),
            Entry::Message(text) => chat.take(&text),
        };
        match done {
            Ok(Done::GoOn) => {}
            Ok(Done::Leave) => return Ok(()),
            Err(error) if crate::error::is_broken_pipe(&error) => return Err(error),
            Err(error) => console.error(&error),
        }
    }
}

/// Whether the conversation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    GoOn,
    Leave,
}

/// A conversation with a model.
struct Chat<'a> {
    options: &'a AskOptions,
    console: &'a Console,
    model: Model,
    conversation: Conversation,
    settings: Settings,
    /// Text of files that goes before the next message.
    attached: Option<String>,
    /// The last reply's end.
    last: Option<Outcome>,
    /// The user knows that maximum thinking is lowered in this context.
    lowering_told: bool,
}

impl Chat<'_> {
    /// Takes what was typed.
    fn take(&mut self, text: &str) -> Result<Done> {
        match command::parse(text)? {
            Some(command) => self.obey(command),
            None => {
                let attached = self.attached.take();
                let content = match (&attached, text.trim().is_empty()) {
                    (None, true) => return Ok(Done::GoOn),
                    (None, false) => text.to_owned(),
                    (Some(file), true) => file.clone(),
                    (Some(file), false) => format!("{file}\n\n{text}"),
                };
                if let Err(error) = self.say(content) {
                    self.attached = attached;
                    return Err(error);
                }
                Ok(Done::GoOn)
            }
        }
    }

    /// Adds a message and the reply to it. A message that cannot be answered is taken out again.
    fn say(&mut self, content: String) -> Result<()> {
        let n_turns = self.conversation.turns.len();
        self.conversation.turns.push(Turn::User { content });
        let result = self.reply();
        self.console.end_progress();
        if result.is_err() {
            self.conversation.turns.truncate(n_turns);
        }
        result
    }

    fn reply(&mut self) -> Result<()> {
        let messages = self.conversation.messages();
        let prompt = self.model.prompt(&messages, self.settings.thinking)?;
        if prompt.lowered && !self.lowering_told {
            self.lowering_told = true;
            let min_context = self.options.rules.max_min_context;
            self.console
                .report(&lowered_note(self.model.context(), min_context));
        }
        let options = ReplyOptions {
            sampling: sampling(&self.settings, self.options.seed),
            max_tokens: self.options.max_tokens,
            n_logprobs: None,
        };
        let console = self.console;
        let style = ReasoningStyle::new(console, self.options.show_reasoning);
        let mut writer = ReplyWriter::new(io::stdout().lock(), style, console.stdout_is_terminal);
        let outcome = self.model.reply(&prompt, &options, &mut |progress| {
            match progress {
                Progress::Prefill { n_done, n_total } => show_prefill(console, n_done, n_total),
                Progress::Token { .. } => {}
                Progress::Reasoning(text) => writer.reasoning(text)?,
                Progress::Content(text) => writer.content(text)?,
            }
            Ok(())
        });
        console.end_progress();
        writer.finish()?;
        let outcome = outcome?;
        let reply = &outcome.reply;
        if !(reply.content.is_empty() && reply.reasoning.is_empty()) {
            self.conversation.turns.push(Turn::Assistant {
                reasoning: reply.reasoning.clone(),
                content: reply.content.clone(),
                open: outcome.reason != FinishReason::Stop,
            });
        }
        console.report(&closing_line(&outcome));
        if outcome.reason == FinishReason::ContextFull {
            console.report("/ctx N opens a longer context, /clear begins anew");
        }
        self.last = Some(outcome);
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<Done> {
        match command {
            Command::Help => self.tell(command::HELP)?,
            Command::Think(thinking) => {
                self.settings.thinking = thinking;
                self.lowering_told = false;
                self.tell(&format!("thinking {}", thinking.name()))?;
            }
            Command::Context(n) => {
                self.model.reopen(n, self.console)?;
                self.tell(&format!(
                    "a context of {}; the next reply reads the conversation again",
                    units::plural(self.model.context(), "token")
                ))?;
            }
            Command::Read(path) => self.attach(&path)?,
            Command::Status => self.status()?,
            Command::Save(path) => {
                conversation::save(&path, &self.conversation, self.settings)?;
                self.tell(&format!(
                    "{} in {}",
                    units::plural(self.conversation.turns.len(), "message"),
                    path.display()
                ))?;
            }
            Command::Load(path) => {
                let (conversation, settings) = conversation::load(&path)?;
                sampling(&settings, None).validate(usize::MAX)?;
                self.conversation = conversation;
                self.settings = settings;
                self.attached = None;
                self.tell(&format!(
                    "{}; thinking {}",
                    units::plural(self.conversation.turns.len(), "message"),
                    settings.thinking.name()
                ))?;
            }
            Command::Clear => {
                self.conversation.turns.clear();
                self.attached = None;
                self.last = None;
                self.tell("a new conversation")?;
            }
            Command::Quit => return Ok(Done::Leave),
        }
        Ok(Done::GoOn)
    }

    /// Puts a file before the next message, if the context has room for it.
    fn attach(&mut self, path: &Path) -> Result<()> {
        let text = read_text_file(path)?;
        if text.trim().is_empty() {
            bail!("{} is empty", path.display());
        }
        let attached = match &self.attached {
            None => text,
            Some(before) => format!("{before}\n\n{text}"),
        };
        let mut with_file = self.conversation.clone();
        with_file.turns.push(Turn::User {
            content: attached.clone(),
        });
        let n_tokens = self.n_tokens(&with_file)?;
        let context = self.model.context();
        if n_tokens >= context {
            bail!(
                "{} is too long: the conversation with it has {}, and the context holds {}; \
                 /ctx N opens a longer one",
                path.display(),
                units::plural(n_tokens, "token"),
                units::count(context as u64)
            );
        }
        self.attached = Some(attached);
        self.tell(&format!(
            "{} goes before your next message, {} with it; an empty line sends it alone",
            path.display(),
            units::plural(n_tokens, "token")
        ))?;
        Ok(())
    }

    fn n_tokens(&self, conversation: &Conversation) -> Result<usize> {
        let messages = conversation.messages();
        let prompt = self.model.prompt(&messages, self.settings.thinking)?;
        Ok(prompt.tokens.len())
    }

    fn status(&self) -> Result<()> {
        let n_tokens = self.n_tokens(&self.conversation)?;
        let Settings {
            thinking,
            temperature,
            top_k,
            top_p,
            min_p,
        } = self.settings;
        let out = &mut io::stdout().lock();
        let name = printable(self.model.engine().name());
        writeln!(out, "model     {name}")?;
        writeln!(out, "memory    {}", self.model.engine().plan())?;
        writeln!(
            out,
            "context   {} of {} tokens in {}, {} cached",
            units::count(n_tokens as u64),
            units::count(self.model.context() as u64),
            units::plural(self.conversation.turns.len(), "message"),
            units::count(self.model.engine().len(0) as u64)
        )?;
        writeln!(out, "thinking  {}", thinking.name())?;
        writeln!(
            out,
            "sampling  temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}"
        )?;
        if let Some(outcome) = &self.last {
            writeln!(out, "last      {}", closing_line(outcome))?;
        }
        if let Some(attached) = &self.attached {
            writeln!(out, "attached  {}", units::bytes(attached.len() as u64))?;
        }
        Ok(())
    }

    /// The answer to a command: always shown, since it was asked for.
    fn tell(&self, text: &str) -> Result<()> {
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}
