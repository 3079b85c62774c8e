//! `ds4`: talk to DeepSeek V4 Flash.
//!
//! Arguments as typed ([`crate::args`]) become options ([`crate::options`]), which a command runs. stdout
//! carries the answer alone; banner, progress and errors go to stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use crate::args::{AskArgs, Cli, Command, VerbosityArgs};
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::options::{AskOptions, Task};
use crate::{args, chat, commands, error, interrupt};

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
    let stdout = &mut io::stdout().lock();
    match cli.command {
        None => return ask(cli.ask),
        Some(Command::Inspect(args)) => commands::inspect::run(&args, stdout)?,
        Some(Command::Logits(args)) => commands::logits::run(&args, &console, stdout)?,
        Some(Command::Text(args)) => {
            commands::text::run(&args.door, &mut io::stdin().lock(), stdout)?;
        }
        Some(Command::Bench(args)) => commands::bench::run(&args, &console, stdout)?,
        Some(Command::Verify(args)) => return commands::verify::run(&args, &console, stdout),
        Some(Command::Pull(args)) => return commands::pull::run(&args, &console, stdout),
        Some(Command::Kv(args)) => commands::kv::run(&args.command, stdout)?,
    }
    Ok(Answered::Complete)
}

fn ask(args: AskArgs) -> Result<Answered> {
    let console = Console::new(args.verbosity);
    let options = AskOptions::new(args, io::stdin().is_terminal())?;
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
