//! `ds4`: talk to DeepSeek V4 Flash.

mod args;
mod commands;
mod console;
mod error;
mod folders;
mod interrupt;
mod machine;
mod model_choice;
mod prompt_input;
mod reply_writer;
mod units;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::spelled_for_clap(std::env::args_os()));
    let result = match cli.command {
        Some(Command::Inspect(args)) => commands::inspect::run(&args, &mut std::io::stdout().lock()),
        _ => todo!(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
