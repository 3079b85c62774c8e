//! Lines from the user, edited and remembered.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Result;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

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
    /// Opens it, with the history of earlier conversations when there is one.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub(super) fn new(console: &Console) -> Result<Input> {
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)?
            .auto_add_history(false)
            .bracketed_paste(true)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Lines::default()));
        let history = folders::state().map(|folder| folder.join("history"));
        if let Some(path) = history.as_ref().filter(|path| path.is_file())
            && let Err(error) = editor.load_history(path)
        {
            console.note(&format!("{}: {error}", path.display()));
        }
        Ok(Input {
            editor,
            history,
            prompt: "> ",
        })
    }

    /// The next entry. Ctrl+C clears what was typed; on an empty line, twice in a row, it leaves.
    ///
    /// # Errors
    /// The terminal fails.
    pub(super) fn read(&mut self) -> Result<Entry> {
        let mut interrupted = false;
        loop {
            match self.editor.readline(self.prompt) {
                Ok(text) => {
                    self.remember(&text);
                    return Ok(Entry::Message(multiline::message(&text).into_owned()));
                }
                Err(ReadlineError::Interrupted) => {
                    let was_empty = self.editor.helper().is_none_or(Lines::take_empty);
                    if was_empty && interrupted {
                        return Ok(Entry::End);
                    }
                    if was_empty {
                        let _ = writeln!(io::stderr(), "Ctrl+C again or Ctrl+D leaves");
                    }
                    interrupted = was_empty;
                }
                Err(ReadlineError::Eof) => return Ok(Entry::End),
                Err(error) => return Err(error.into()),
            }
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
fn private_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn private_folder(path: &std::path::Path) -> std::io::Result<()> {
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

/// Tells the editor when an entry goes on, and remembers whether there is one: an interrupted
/// editor does not say.
#[derive(Default)]
struct Lines {
    has_text: Cell<bool>,
}

impl Lines {
    /// Whether nothing was typed since this was asked.
    fn take_empty(&self) -> bool {
        !self.has_text.take()
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
    fn hint(&self, line: &str, _at: usize, _context: &Context<'_>) -> Option<String> {
        self.has_text.set(!line.is_empty());
        None
    }
}

impl Completer for Lines {
    type Candidate = String;
}

impl Highlighter for Lines {}

impl Helper for Lines {}
