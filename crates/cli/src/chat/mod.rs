//! The interactive conversation.

mod command;
mod input;
mod kept;
mod multiline;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

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
use crate::word_wrap::wrapped;

use command::{Command, Sampling};
use input::{Entry, Input};
use kept::Kept;

/// Messages of a conversation that are shown when it is taken up again.
const MAX_SHOWN: usize = 20;

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
    let kept = Kept::new(options.private);
    let model = kept.with_states(model, console)?;
    console.note(&format!(
        "{}, a context of {} tokens; /help lists the commands",
        printable(model.engine().name()),
        units::count(model.context() as u64)
    ));
    if let Some(n) = kept.n_messages() {
        console.note(&format!(
            "/resume goes on with the last conversation, {}",
            units::plural(n, "message")
        ));
    }
    let mut chat = Chat {
        conversation: Conversation {
            system: options.system.clone(),
            turns: Vec::new(),
        },
        settings: options.settings,
        attached: None,
        last: None,
        lowering_told: false,
        seed: options.seed,
        file: None,
        kept,
        model,
        options,
        console,
    };
    let mut input = Input::new(console, options.private)?;
    loop {
        let entry = input.read()?;
        let done = match entry {
            Entry::End => Ok(Done::Leave),
            Entry::Message(text) => chat.take(&text),
        };
        let done = match done {
            Ok(Done::Overwrite(path)) => {
                let question = format!("{} is there already. Overwrite it?", path.display());
                match input.confirm(&question)? {
                    true => chat.save(path),
                    false => Ok(Done::GoOn),
                }
            }
            done => done,
        };
        match done {
            Ok(Done::GoOn | Done::Overwrite(_)) => {}
            Ok(Done::Leave) => {
                chat.model.save_state();
                return Ok(());
            }
            Err(error) if crate::error::is_broken_pipe(&error) => return Err(error),
            Err(error) => console.error(&error),
        }
    }
}

/// Whether the conversation goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    GoOn,
    Leave,
    /// A file is there, and whether it may be replaced is for the user to say.
    Overwrite(PathBuf),
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
    /// Makes replies repeatable.
    seed: Option<u64>,
    /// The file that holds this conversation.
    file: Option<PathBuf>,
    /// What is left for the next time.
    kept: Kept,
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

    /// Answers the last message again. A reply that cannot be replaced stays.
    fn retry(&mut self) -> Result<()> {
        let before = match self.conversation.turns.last() {
            Some(Turn::Assistant { .. }) => self.conversation.turns.pop(),
            Some(Turn::User { .. }) => None,
            None => bail!("there is nothing to answer again"),
        };
        let n_turns = self.conversation.turns.len();
        let result = self.reply();
        self.console.end_progress();
        if result.is_err() || self.conversation.turns.len() == n_turns {
            self.conversation.turns.truncate(n_turns);
            self.conversation.turns.extend(before);
        }
        result
    }

    /// Takes the last message and its reply back.
    fn undo(&mut self) -> Result<()> {
        let turns = &mut self.conversation.turns;
        let is_message = |turn: &Turn| matches!(turn, Turn::User { .. });
        let Some(at) = turns.iter().rposition(is_message) else {
            bail!("there is no message to take back");
        };
        let taken = turns.drain(at..).next();
        if let Some(Turn::User { content }) = taken {
            let line = content.lines().next().unwrap_or_default();
            let begin: String = line.chars().take(60).collect();
            let more = if begin.len() < content.len() {
                "..."
            } else {
                ""
            };
            self.tell(&format!("taken back: {}{more}", printable(&begin)))?;
        }
        self.keep();
        Ok(())
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
            sampling: sampling(&self.settings, self.seed),
            max_tokens: self.options.max_tokens,
            n_logprobs: None,
        };
        let console = self.console;
        let style = ReasoningStyle::new(console, self.options.show_reasoning);
        let writer = ReplyWriter::new(io::stdout().lock(), style, console.stdout_is_terminal);
        let mut writer = writer.wrapped(console.width());
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
        self.keep();
        Ok(())
    }

    /// Leaves the conversation for `/resume`.
    fn keep(&self) {
        let kept = self
            .kept
            .write(&self.conversation, self.settings, self.model.spoken());
        if let Err(error) = kept {
            // What cannot be kept is no reason to stop talking.
            self.console.detail(&crate::error::one_line(&error));
        }
    }

    fn save(&mut self, path: PathBuf) -> Result<Done> {
        conversation::save(&path, &self.conversation, self.settings)?;
        self.tell(&format!(
            "{} in {}",
            units::plural(self.conversation.turns.len(), "message"),
            path.display()
        ))?;
        self.file = Some(path);
        Ok(Done::GoOn)
    }

    /// Goes on with another conversation, and shows it.
    fn take_over(&mut self, conversation: Conversation, settings: Settings) -> Result<()> {
        sampling(&settings, None).validate(usize::MAX)?;
        self.conversation = conversation;
        self.settings = settings;
        self.attached = None;
        self.last = None;
        self.show_conversation()?;
        self.tell(&format!(
            "{}; thinking {}",
            units::plural(self.conversation.turns.len(), "message"),
            settings.thinking.name()
        ))
    }

    /// Prints the end of the conversation as it stood on the screen, without the reasoning.
    fn show_conversation(&self) -> Result<()> {
        let turns = &self.conversation.turns;
        let n_hidden = turns.len().saturating_sub(MAX_SHOWN);
        if n_hidden > 0 {
            self.tell(&format!("({} before)", units::plural(n_hidden, "message")))?;
        }
        for turn in &turns[n_hidden..] {
            match turn {
                Turn::User { content } => {
                    for (i, line) in content.lines().enumerate() {
                        let mark = if i == 0 { "> " } else { "  " };
                        self.tell(&format!("{mark}{}", printable(line)))?;
                    }
                }
                Turn::Assistant { content, .. } => {
                    let style = ReasoningStyle::new(self.console, false);
                    let is_terminal = self.console.stdout_is_terminal;
                    let writer = ReplyWriter::new(io::stdout().lock(), style, is_terminal);
                    let mut writer = writer.wrapped(self.console.width());
                    writer.content(content)?;
                    writer.finish()?;
                }
            }
        }
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
            Command::Retry => self.retry()?,
            Command::Undo => self.undo()?,
            Command::System(None) => match &self.conversation.system {
                Some(system) => self.tell(&printable(system))?,
                None => self.tell("there is no system text: /system TEXT sets one")?,
            },
            Command::System(Some(text)) => {
                let is_set = !text.is_empty();
                self.conversation.system = is_set.then_some(text);
                self.tell(match is_set {
                    true => "the system text is set; the next reply reads the conversation again",
                    false => "no system text; the next reply reads the conversation again",
                })?;
            }
            Command::Sampling(change) => {
                let mut settings = self.settings;
                match change {
                    Sampling::Temperature(t) => settings.temperature = t,
                    Sampling::TopK(k) => settings.top_k = k,
                    Sampling::TopP(p) => settings.top_p = p,
                    Sampling::MinP(p) => settings.min_p = p,
                }
                sampling(&settings, None).validate(usize::MAX)?;
                self.settings = settings;
                self.tell(&sampling_line(&settings, self.seed))?;
            }
            Command::Seed(seed) => {
                self.seed = seed;
                self.tell(&sampling_line(&self.settings, seed))?;
            }
            Command::Save(path) => {
                let is_own = self.file.as_ref() == Some(&path);
                if path.exists() && !is_own {
                    return Ok(Done::Overwrite(path));
                }
                return self.save(path);
            }
            Command::Load(path) => {
                let (conversation, settings) = conversation::load(&path)?;
                self.take_over(conversation, settings)?;
                self.file = Some(path);
            }
            Command::Resume => {
                let (conversation, settings, spoken) = self.kept.read()?;
                self.take_over(conversation, settings)?;
                self.model.remember(spoken);
                self.file = None;
            }
            Command::Clear => {
                self.conversation.turns.clear();
                self.attached = None;
                self.last = None;
                self.file = None;
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
        let thinking = self.settings.thinking;
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
            "sampling  {}",
            sampling_line(&self.settings, self.seed)
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
        let text = wrapped(text, self.console.width());
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}

/// How replies are sampled, on one line.
fn sampling_line(settings: &Settings, seed: Option<u64>) -> String {
    let Settings {
        temperature,
        top_k,
        top_p,
        min_p,
        ..
    } = settings;
    let seed = seed.map_or(String::new(), |seed| format!(", seed {seed}"));
    format!("temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}{seed}")
}
