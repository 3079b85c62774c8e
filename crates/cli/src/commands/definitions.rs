//! `ds4 completions` and `ds4 man`: what shells and readers are told of the arguments, made from
//! the types that parse them.

use std::io::Write;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};

use crate::args::{Cli, CompletionsArgs, ManArgs, ProgramArg};

/// Prints the completions of a shell.
///
/// # Errors
/// This build has no such program, or the output says so.
pub(crate) fn completions(args: &CompletionsArgs, out: &mut dyn Write) -> Result<()> {
    let mut command = match args.program {
        ProgramArg::Ds4 => Cli::command(),
        ProgramArg::Server => server().with_context(|| {
            "this build has no ds4-server: build it with --features server".to_owned()
        })?,
    };
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    out.write_all(&text)?;
    Ok(out.flush()?)
}

/// Writes a page for every program and command: `ds4.1`, `ds4-inspect.1`, ...
///
/// # Errors
/// The folder cannot be made or written.
pub(crate) fn man(args: &ManArgs, out: &mut dyn Write) -> Result<()> {
    let failed = || format!("cannot write {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(failed)?;
    let ds4 = Cli::command().disable_help_subcommand(true);
    for command in std::iter::once(ds4).chain(server()) {
        clap_mangen::generate_to(command, &args.folder).with_context(failed)?;
    }
    writeln!(out, "manual pages in {}", args.folder.display())?;
    Ok(())
}

/// The arguments of `ds4-server`, where it is built in.
fn server() -> Option<Command> {
    #[cfg(feature = "server")]
    return Some(crate::server::command());
    #[cfg(not(feature = "server"))]
    None
}
