//! `ds4 completions`, `ds4 man` and `ds4 setup`: what shells and readers are told of the arguments,
//! made from the types that parse them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::args::{Cli, CompletionsArgs, ManArgs, ProgramArg, SetupArgs};
use crate::folders;

/// Where each shell looks for completions below a folder `share`, and what the file of a program is
/// called there.
const COMPLETIONS: [(Shell, &str, fn(&str) -> String); 3] = [
    (Shell::Bash, "bash-completion/completions", |name| {
        name.to_owned()
    }),
    (Shell::Zsh, "zsh/site-functions", |name| format!("_{name}")),
    (Shell::Fish, "fish/vendor_completions.d", |name| {
        format!("{name}.fish")
    }),
];

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
    pages(&args.folder)?;
    writeln!(out, "manual pages in {}", args.folder.display())?;
    Ok(())
}

fn pages(folder: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    let ds4 = Cli::command().disable_help_subcommand(true);
    for command in std::iter::once(ds4).chain(server()) {
        clap_mangen::generate_to(command, folder).with_context(failed)?;
    }
    Ok(())
}

/// Puts the completions of all programs and the manual pages where the user's shells and `man` look.
///
/// # Errors
/// There is no such folder for this user, or it cannot be written.
pub(crate) fn setup(args: &SetupArgs, out: &mut dyn Write) -> Result<()> {
    let share = match &args.prefix {
        Some(prefix) => prefix.join("share"),
        None => folders::data().context("no home folder: --prefix DIR says where to write")?,
    };
    for (shell, below, file_name) in COMPLETIONS {
        let folder = share.join(below);
        let failed = || format!("cannot write {}", folder.display());
        fs::create_dir_all(&folder).with_context(failed)?;
        for mut command in std::iter::once(Cli::command()).chain(server()) {
            let name = command.get_name().to_owned();
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut text);
            fs::write(folder.join(file_name(&name)), text).with_context(failed)?;
        }
        writeln!(out, "{shell}: {}", folder.display())?;
        if shell == Shell::Zsh && args.prefix.is_none() {
            writeln!(
                out,
                "     which zsh searches with this line in ~/.zshrc, before compinit: fpath+=({})",
                folder.display()
            )?;
        }
    }
    let folder = match &args.prefix {
        Some(_) => share,
        // `man` searches beside the folders of the search path.
        None => beside_this_program().unwrap_or(share),
    };
    let folder = folder.join("man/man1");
    pages(&folder)?;
    writeln!(out, "man:  {}", folder.display())?;
    Ok(())
}

/// The folder `share` beside the folder `bin` that this program is in; `None` where it is in another
/// or nothing can be written there.
fn beside_this_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    if folder.file_name()? != "bin" {
        return None;
    }
    let share = folder.parent()?.join("share");
    fs::create_dir_all(share.join("man/man1")).ok()?;
    Some(share)
}

/// The arguments of `ds4-server`, where it is built in.
fn server() -> Option<Command> {
    #[cfg(feature = "server")]
    return Some(crate::server::command());
    #[cfg(not(feature = "server"))]
    None
}
