//! `ds4`: talk to DeepSeek V4 Flash.
//!
//! Arguments as typed ([`crate::args`]) become options ([`crate::options`]), which a command runs. stdout
//! carries the answer alone; banner, progress and errors go to stderr.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{CommandFactory as _, Parser as _};

use crate::args::{AskArgs, Cli, Command, VerbosityArgs};
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::options::{AskOptions, Task};
use crate::prompt_input::Stdin;
use crate::{args, chat, commands, error, interrupt, other_names, suggestion};

/// Runs `ds4` with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(args::spelled_for_clap(std::env::args_os()));
    match run(cli) {
        Ok(Answered::Complete) => ExitCode::SUCCESS,
        Ok(Answered::Interrupted) => ExitCode::from(interrupt::EXIT_STATUS),
        Err(error) if error::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody takes the message, the exit status says it.
            let _ = writeln!(io::stderr(), "ds4: {}", error::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<Answered> {
    let console = Console::new(VerbosityArgs::default());
    let command = match cli.command {
        None => return ask(cli.ask, None),
        Some(Command::Run(args)) => return ask(*args, Some("run")),
        Some(Command::Chat(args)) => return ask(*args, Some("chat")),
        Some(Command::Serve(args)) => {
            serve(args.flags)?;
            return Ok(Answered::Complete);
        }
        Some(command) => command,
    };
    let stdout = &mut io::stdout().lock();
    match command {
        Command::Inspect(args) => commands::inspect::run(&args, stdout)?,
        Command::Logits(args) => commands::logits::run(&args, &console, stdout)?,
        Command::Text(args) => {
            commands::text::run(&args.door, &mut io::stdin().lock(), stdout)?;
        }
        Command::Verify(args) => return commands::verify::run(&args, &console, stdout),
        Command::Quantize(args) => return commands::quantize::run(&args, &console, stdout),
        Command::Imatrix(args) => return commands::imatrix::run(&args, &console, stdout),
        Command::Eval(args) => return commands::eval::run(&args, &console, stdout),
        Command::Pull(args) => return commands::pull::run(&args, &console, stdout),
        Command::Bench(args) => commands::bench::run(&args, &console, stdout)?,
        Command::Kv(args) => commands::kv::run(&args.command, stdout)?,
        Command::Completions(args) => commands::definitions::completions(&args, stdout)?,
        Command::Man(args) => commands::definitions::man(&args, stdout)?,
        Command::Setup(args) => commands::definitions::setup(&args, stdout)?,
        Command::Run(_) | Command::Chat(_) | Command::Serve(_) => {}
    }
    Ok(Answered::Complete)
}

/// Runs the server with its own flags.
#[cfg(feature = "server")]
fn serve(flags: Vec<OsString>) -> Result<()> {
    crate::server::run_with(flags)
}

#[cfg(not(feature = "server"))]
fn serve(_flags: Vec<OsString>) -> Result<()> {
    anyhow::bail!(
        "this build has no server: install it with `cargo install --path crates/cli --locked \
         --features full`"
    )
}

fn ask(mut args: AskArgs, command: Option<&str>) -> Result<Answered> {
    refuse_slips(&args)?;
    let console = Console::new(args.verbosity);
    let mut stdin = Stdin::of_process();
    // Who asks for a conversation has it, also with lines from a pipe.
    if command == Some("chat") && args.prompt_file.is_none() {
        if args.question.is_some() || args.prompt.is_some() {
            bail!("ds4 chat takes no question: leave out `chat` for one answer");
        }
        stdin = Stdin::Terminal;
    }
    if let Some(without_effect) = other_names::without_effect(&args.engine) {
        console.report(&without_effect);
    }
    if args.system.as_deref() == Some("") {
        args.system = None;
    }
    let options = AskOptions::new(args, stdin)?;
    match &options.task {
        Task::Chat => chat::run(&options, &console)?,
        Task::Answer(prompt) => return commands::ask::answer(&options, prompt, &console),
        Task::DumpTokens(prompt) => {
            let stdout = &mut io::stdout().lock();
            commands::ask::dump_tokens(&options, prompt, &console, stdout)?;
        }
        Task::DumpLogprobs(prompt, logprobs) => {
            return commands::ask::dump_logprobs(&options, prompt, logprobs, &console);
        }
    }
    Ok(Answered::Complete)
}

/// Refuses a question that is a command misspelt, or the model's file.
fn refuse_slips(args: &AskArgs) -> Result<()> {
    let Some(word) = args.question.as_deref().filter(|q| is_word(q)) else {
        return Ok(());
    };
    if word.ends_with(".gguf") {
        bail!("{word} is no question: name the model with -m {word}");
    }
    let definition = Cli::command();
    let commands = definition.get_subcommands().map(clap::Command::get_name);
    if let Some(command) = suggestion::nearest(word, commands) {
        bail!(
            "there is no command {word}: did you mean `ds4 {command}`? A question of one word \
             is asked by -p {word}"
        );
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace())
}
