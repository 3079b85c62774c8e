//! Lines from the user, edited and remembered.

use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Result;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};

use super::command::NAMES;
use super::multiline;
use crate::console::Console;
use crate::folders;

/// Entries that the history keeps.
const MAX_HISTORY: usize = 1000;

/// What the user did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Entered something.
    Message(String),
    /// Left, with Ctrl+D or a second Ctrl+C.
    End,
}

/// The prompt line.
pub(super) struct Input {
    editor: Editor<Lines, FileHistory>,
    history: Option<PathBuf>,
    prompt: &'static str,
}

impl Input {
    /// Opens it, with the history of earlier conversations when there is one; a private one leaves
    /// no line in it.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub(super) fn new(console: &Console, is_private: bool) -> Result<Input> {
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)?
            .auto_add_history(false)
            .bracketed_paste(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Lines::new()));
        let history = folders::state().map(|folder| folder.join("history"));
        if let Some(path) = history.as_ref().filter(|path| path.is_file())
            && let Err(error) = editor.load_history(path)
        {
            console.note(&format!("{}: {error}", path.display()));
        }
        Ok(Input {
            editor,
            history: history.filter(|_| !is_private),
            prompt: "> ",
        })
    }

    /// The next entry. Ctrl+C clears what was typed; on an empty line, twice with nothing between,
    /// it leaves. A byte that is no text is left out on a terminal, and its line from a pipe.
    ///
    /// # Errors
    /// The terminal fails.
    pub(super) fn read(&mut self) -> Result<Entry> {
        let mut interrupted = false;
        let mut typed = Typed::default();
        loop {
            let on_the_line = (typed.before.as_str(), typed.behind.as_str());
            match self.editor.readline_with_initial(self.prompt, on_the_line) {
                Ok(text) => {
                    self.remember(&text);
                    return Ok(Entry::Message(multiline::message(&text).into_owned()));
                }
                Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    // The byte is read and gone, so this comes to an end.
                    let _ = writeln!(io::stderr(), "\nleft out: what was typed is not UTF-8");
                    typed = self
                        .editor
                        .helper()
                        .map_or_else(Typed::default, Lines::typed);
                }
                Err(ReadlineError::Interrupted) => {
                    typed = Typed::default();
                    let (is_empty, was_touched) =
                        self.editor.helper().map_or((true, false), Lines::take);
                    if is_empty && interrupted && !was_touched {
                        return Ok(Entry::End);
                    }
                    if is_empty {
                        let _ = writeln!(io::stderr(), "Ctrl+C again or Ctrl+D leaves");
                    }
                    interrupted = is_empty;
                }
                Err(ReadlineError::Eof) => return Ok(Entry::End),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks a question that yes or no answers; anything but yes is no.
    ///
    /// # Errors
    /// The terminal fails.
    pub(super) fn confirm(&mut self, question: &str) -> Result<bool> {
        match self.editor.readline(&format!("{question} [y/N] ")) {
            Ok(answer) => Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")),
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => Ok(false),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A history that cannot be written is no reason to stop talking.
    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() || !self.editor.add_history_entry(text).unwrap_or(false) {
            return;
        }
        let Some(path) = &self.history else {
            return;
        };
        if let Some(folder) = path.parent() {
            let _ = private_folder(folder);
        }
        let _ = self.editor.append_history(path);
        let _ = keep_private(path);
    }
}

/// Creates a folder that only its owner reads.
#[cfg(unix)]
pub(super) fn private_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
pub(super) fn private_folder(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)
}

/// What was said is for its owner's eyes.
#[cfg(unix)]
fn keep_private(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
fn keep_private(_path: &std::path::Path) -> std::io::Result<()> {
    Ok(())
}

/// A line that is being typed, on both sides of the cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Typed {
    before: String,
    behind: String,
}

/// Tells the editor when an entry goes on and what completes it, and remembers what was typed: an
/// interrupted editor does not say.
struct Lines {
    /// The line as it is now.
    typed: RefCell<Typed>,
    /// It had some since the last interruption.
    was_touched: Cell<bool>,
    files: FilenameCompleter,
}

impl Lines {
    fn new() -> Lines {
        Lines {
            typed: RefCell::default(),
            was_touched: Cell::new(false),
            files: FilenameCompleter::new(),
        }
    }

    /// Whether the line is empty, and whether it was not since this was asked.
    fn take(&self) -> (bool, bool) {
        (
            self.typed.take() == Typed::default(),
            self.was_touched.take(),
        )
    }

    /// What was on the line.
    fn typed(&self) -> Typed {
        self.typed.take()
    }
}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if multiline::is_open(context.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Hinter for Lines {
    type Hint = String;

    /// Gives no hint; the editor asks after every change.
    fn hint(&self, line: &str, at: usize, _context: &Context<'_>) -> Option<String> {
        let (before, behind) = line.split_at(at);
        self.typed.replace(Typed {
            before: before.to_owned(),
            behind: behind.to_owned(),
        });
        self.was_touched
            .set(self.was_touched.get() || !line.is_empty());
        None
    }
}

/// Commands whose argument is a file.
const TAKE_FILES: [&str; 3] = ["/read ", "/save ", "/load "];

impl Completer for Lines {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        if TAKE_FILES.iter().any(|command| line.starts_with(command)) {
            return self.files.complete(line, at, context);
        }
        Ok((0, commands_that_begin(&line[..at])))
    }
}

/// The commands that what was typed may become.
fn commands_that_begin(typed: &str) -> Vec<Pair> {
    let Some(begin) = typed.strip_prefix('/') else {
        return Vec::new();
    };
    let names = NAMES.into_iter().chain(["quit"]);
    names
        .filter(|name| name.starts_with(begin))
        .map(|name| Pair {
            display: format!("/{name}"),
            replacement: format!("/{name}"),
        })
        .collect()
}

impl Highlighter for Lines {}

impl Helper for Lines {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_a_command_is_completed_and_nothing_else_is() {
        let names = |typed: &str| -> Vec<String> {
            let pairs = commands_that_begin(typed);
            pairs.into_iter().map(|pair| pair.replacement).collect()
        };
        assert_eq!(names("/st"), ["/status"]);
        assert_eq!(names("/re"), ["/retry", "/read", "/resume"]);
        assert_eq!(names("/q"), ["/quit"]);
        assert_eq!(names("st"), [""; 0]);
        assert_eq!(names("/x"), [""; 0]);
    }
}
