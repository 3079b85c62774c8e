//! The commands of a conversation.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::options::Thinking;
use crate::suggestion::nearest;

/// What `/help` prints.
pub(super) const HELP: &str = "\
The conversation
  /retry             answer the last message again
  /undo              take the last message and its reply back
  /read FILE         put a text file before the next message
  /system [TEXT]     show the system text, or set it; - is none
  /clear             forget the conversation, keep the system text
Files
  /resume            go on with the last conversation, from its state on disk
  /save FILE         write the conversation as JSON
  /load FILE         go on with a saved conversation
Settings
  /think, /nothink   reason before answering, or answer at once
  /think-max         reason with maximum effort
  /temp T            sampling temperature; 0 is greedy
  /top-k K, /top-p P, /min-p P
                     sample among the likeliest
  /seed [N]          make replies repeatable, or not
  /ctx N             reopen with a context of N tokens; the conversation stays
  /status            model, context, cache, settings, rates
Leaving
  /quit              so does Ctrl+D
  /help              this list

Tab completes commands and file names. A message of several lines: end a line with \\, or put it
between lines of \"\"\", or begin a ``` block. Ctrl+C stops a reply and keeps what was said; at the
prompt it clears the line, and twice in a row it leaves. A message that begins with / begins with a
blank.";

/// Names of commands, as they are completed and suggested.
pub(super) const NAMES: [&str; 19] = [
    "help",
    "retry",
    "undo",
    "read",
    "system",
    "clear",
    "resume",
    "save",
    "load",
    "think",
    "nothink",
    "think-max",
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "seed",
    "ctx",
    "status",
];

/// A command.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    /// Print [`HELP`].
    Help,
    /// Answer the last message again.
    Retry,
    /// Take the last message and its reply back.
    Undo,
    /// Show the system text, or set it; an empty one is none.
    System(Option<String>),
    /// Set the thinking mode.
    Think(Thinking),
    /// Change how replies are sampled.
    Sampling(Sampling),
    /// Make replies repeatable, or not.
    Seed(Option<u64>),
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
    /// Replace it with the last one.
    Resume,
    /// Forget the conversation.
    Clear,
    /// End.
    Quit,
}

/// A change of sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sampling {
    /// The temperature.
    Temperature(f32),
    /// Tokens sampled among.
    TopK(usize),
    /// Share of the probability sampled among.
    TopP(f32),
    /// Least share of the likeliest token's probability.
    MinP(f32),
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
    let number = || -> Result<f32> {
        let number = argument.parse().ok().filter(|n: &f32| n.is_finite());
        number.with_context(|| format!("/{name} needs a number, found {argument:?}"))
    };
    let with_argument = match name {
        "ctx" => match crate::args::tokens(argument) {
            Ok(n) => Some(Command::Context(n)),
            Err(_) => {
                bail!("/ctx needs a number of tokens, found {argument:?}: e.g. /ctx 32768")
            }
        },
        "read" => Some(Command::Read(file()?)),
        "save" => Some(Command::Save(file()?)),
        "load" => Some(Command::Load(file()?)),
        "system" => Some(Command::System(match argument {
            "" => None,
            "-" => Some(String::new()),
            text => Some(text.to_owned()),
        })),
        "temp" => Some(Command::Sampling(Sampling::Temperature(number()?))),
        "top-p" => Some(Command::Sampling(Sampling::TopP(number()?))),
        "min-p" => Some(Command::Sampling(Sampling::MinP(number()?))),
        "top-k" => match argument.parse() {
            Ok(k) => Some(Command::Sampling(Sampling::TopK(k))),
            Err(_) => bail!("/top-k needs a whole number, found {argument:?}; 0 is all"),
        },
        "seed" => Some(Command::Seed(match argument {
            "" => None,
            _ => match argument.parse() {
                Ok(seed) => Some(seed),
                Err(_) => bail!("/seed needs a whole number, or none, found {argument:?}"),
            },
        })),
        _ => None,
    };
    if with_argument.is_some() {
        return Ok(with_argument);
    }
    let command = match name {
        "help" | "?" => Command::Help,
        "retry" => Command::Retry,
        "undo" => Command::Undo,
        "think" => Command::Think(Thinking::On),
        "think-max" => Command::Think(Thinking::Max),
        "nothink" => Command::Think(Thinking::Off),
        "status" => Command::Status,
        "resume" => Command::Resume,
        "clear" => Command::Clear,
        "quit" | "exit" => Command::Quit,
        _ => match nearest(name, NAMES.into_iter().chain(["quit"])) {
            Some(meant) => bail!("there is no command /{name}: did you mean /{meant}?"),
            None => bail!(
                "there is no command /{name}: /help lists them; begin a message that starts with \
                 / with a blank"
            ),
        },
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
    fn the_list_that_is_completed_is_the_list_that_is_parsed_and_explained() {
        for name in NAMES {
            let refused = parse(&format!("/{name}")).err().map(|e| e.to_string());
            assert!(
                refused.is_none_or(|e| !e.contains("there is no command")),
                "/{name}"
            );
            assert!(HELP.contains(&format!("/{name}")), "/{name}");
        }
    }

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
            ("/retry", Some(Retry)),
            ("/undo", Some(Undo)),
            ("/resume", Some(Resume)),
            ("/system", Some(System(None))),
            ("/system -", Some(System(Some(String::new())))),
            ("/system Be brief.", Some(System(Some("Be brief.".into())))),
            (
                "/temp 0.7",
                Some(Sampling(super::Sampling::Temperature(0.7))),
            ),
            ("/top-k 40", Some(Sampling(super::Sampling::TopK(40)))),
            ("/top-p 0.9", Some(Sampling(super::Sampling::TopP(0.9)))),
            ("/min-p 0", Some(Sampling(super::Sampling::MinP(0.0)))),
            ("/seed 7", Some(Seed(Some(7)))),
            ("/seed", Some(Seed(None))),
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
            ("/temp", "/temp needs a number"),
            ("/temp NaN", "/temp needs a number"),
            ("/top-k -1", "/top-k needs a whole number"),
            ("/stauts", "did you mean /status"),
            ("/quitt", "did you mean /quit"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
