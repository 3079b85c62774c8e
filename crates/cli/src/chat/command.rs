//! The commands of a conversation.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::options::Thinking;

/// What `/help` prints.
pub(super) const HELP: &str = "\
/help              this list
/think             reason before answering
/think-max         reason with maximum effort
/nothink           answer at once
/ctx N             reopen with a context of N tokens; the conversation stays
/read FILE         put a text file before the next message
/status            model, context, cache, rates
/save FILE         write the conversation as JSON
/load FILE         go on with a saved conversation
/clear             forget the conversation, keep the system text
/quit              leave; so does Ctrl+D

A message of several lines: end a line with \\, or put it between lines of \"\"\", or begin a ```
block. Ctrl+C stops a reply and keeps what was said; at the prompt it clears the line, and twice
in a row it leaves. A message that begins with / begins with a blank.";

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Print [`HELP`].
    Help,
    /// Set the thinking mode.
    Think(Thinking),
    /// Reopen with another context, tokens.
    Context(usize),
    /// Put a file before the next message.
    Read(PathBuf),
    /// Print the state.
    Status,
    /// Write the conversation.
    Save(PathBuf),
    /// Replace the conversation.
    Load(PathBuf),
    /// Forget the conversation.
    Clear,
    /// End.
    Quit,
}

/// A line as a command; `None` when it is a message.
///
/// # Errors
/// An unknown command, or one whose argument is missing or wrong.
pub(super) fn parse(line: &str) -> Result<Option<Command>> {
    let Some(rest) = line.strip_prefix('/') else {
        return Ok(None);
    };
    let rest = rest.trim_end();
    let (name, argument) = match rest.split_once(char::is_whitespace) {
        Some((name, argument)) => (name, argument.trim()),
        None => (rest, ""),
    };
    let file = || -> Result<PathBuf> {
        if argument.is_empty() {
            bail!("/{name} needs a file: /{name} FILE");
        }
        Ok(PathBuf::from(argument))
    };
    let command = match name {
        "ctx" => match crate::args::tokens(argument) {
            Ok(n) => return Ok(Some(Command::Context(n))),
            Err(_) => bail!("/ctx needs a number of tokens, found {argument:?}: e.g. /ctx 32768"),
        },
        "read" => return Ok(Some(Command::Read(file()?))),
        "save" => return Ok(Some(Command::Save(file()?))),
        "load" => return Ok(Some(Command::Load(file()?))),
        "help" | "?" => Command::Help,
        "think" => Command::Think(Thinking::On),
        "think-max" => Command::Think(Thinking::Max),
        "nothink" => Command::Think(Thinking::Off),
        "status" => Command::Status,
        "clear" => Command::Clear,
        "quit" | "exit" => Command::Quit,
        _ => bail!(
            "there is no command /{name}: /help lists them; begin a message that starts with / \
             with a blank"
        ),
    };
    if !argument.is_empty() {
        bail!("/{name} takes no argument, found {argument:?}");
    }
    Ok(Some(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_commands_or_errors() {
        use Command::*;
        for (line, expected) in [
            ("hello", None),
            (" /etc/hosts", None),
            ("", None),
            ("/help", Some(Help)),
            ("/?", Some(Help)),
            ("/think", Some(Think(Thinking::On))),
            ("/think-max  ", Some(Think(Thinking::Max))),
            ("/nothink", Some(Think(Thinking::Off))),
            ("/ctx 4096", Some(Context(4096))),
            ("/ctx 100_000", Some(Context(100_000))),
            ("/read my notes.txt ", Some(Read("my notes.txt".into()))),
            ("/save a.json", Some(Save("a.json".into()))),
            ("/load a.json", Some(Load("a.json".into()))),
            ("/status", Some(Status)),
            ("/clear", Some(Clear)),
            ("/quit", Some(Quit)),
            ("/exit", Some(Quit)),
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line:?}");
        }
        for (line, expected) in [
            ("/", "no command /"),
            ("/etc/hosts is long", "no command /etc/hosts"),
            ("/ctx", "/ctx needs a number"),
            ("/ctx 0", "/ctx needs a number"),
            ("/ctx many", "\"many\""),
            ("/read", "/read needs a file"),
            ("/save  ", "/save needs a file"),
            ("/clear all", "takes no argument"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
