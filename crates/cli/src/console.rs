//! What goes to the terminal besides the answer: banner, progress, closing line. All of it goes
//! to stderr, so that stdout carries the answer alone.

use std::cell::Cell;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::args::VerbosityArgs;
use crate::model_choice::ModelChoice;
use crate::word_wrap::wrapped;

/// Clears from the cursor to the end of the line.
const CLEAR_LINE: &str = "\x1b[K";
/// Less intense text.
pub(crate) const DIM: &str = "\x1b[2m";
/// Ordinary text.
pub(crate) const RESET: &str = "\x1b[0m";

/// Least time between two lines of progress: what is over sooner shows none.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Columns of a terminal from which on lines are broken between words.
const MIN_WIDTH: usize = 20;

/// Columns of a terminal that are enough for words to fit.
fn columns(size: Option<(terminal_size::Width, terminal_size::Height)>) -> Option<usize> {
    let (width, _) = size?;
    Some(usize::from(width.0)).filter(|width| *width >= MIN_WIDTH)
}

/// Where output goes and how it may look.
#[derive(Debug)]
pub(crate) struct Console {
    /// stdout is a terminal.
    pub stdout_is_terminal: bool,
    /// stderr is a terminal.
    pub stderr_is_terminal: bool,
    /// Escape sequences may be used on a terminal.
    pub colour: bool,
    quiet: bool,
    verbose: bool,
    /// A line of progress is on the screen.
    shows_progress: Cell<bool>,
    last_progress: Cell<Instant>,
}

impl Console {
    /// By what stdout and stderr are, and the user's wish not to see colours.
    pub(crate) fn new(verbosity: VerbosityArgs) -> Console {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Console {
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            colour: !no_colour,
            quiet: verbosity.quiet,
            verbose: verbosity.verbose,
            shows_progress: Cell::new(false),
            last_progress: Cell::new(Instant::now()),
        }
    }

    /// Columns of the terminal on stdout; `None` where there is none or it does not say.
    pub(crate) fn width(&self) -> Option<usize> {
        let size = terminal_size::terminal_size_of(io::stdout());
        columns(size).filter(|_| self.stdout_is_terminal)
    }

    /// The same on stderr.
    fn stderr_width(&self) -> Option<usize> {
        let size = terminal_size::terminal_size_of(io::stderr());
        columns(size).filter(|_| self.stderr_is_terminal)
    }

    /// Whether stdout takes colours.
    pub(crate) fn styles_stdout(&self) -> bool {
        self.colour && self.stdout_is_terminal
    }

    /// A line for a person who watches: the banner, notes.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet && (self.stderr_is_terminal || self.verbose) {
            self.line(line);
        }
    }

    /// Which model answers: always said, at more length to a person who watches.
    pub(crate) fn announce(&self, model: &ModelChoice, name: &str) {
        if self.stderr_is_terminal || self.verbose {
            self.report(&model.banner(name));
        } else {
            self.report(&model.line(name));
        }
    }

    /// A line that matters also in a log: warnings and the closing line.
    pub(crate) fn report(&self, line: &str) {
        if !self.quiet {
            self.line(line);
        }
    }

    /// A line for a person who asked for details.
    pub(crate) fn detail(&self, line: &str) {
        if self.verbose {
            self.line(line);
        }
    }

    /// An error that does not end the program.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let line = format!("error: {}", crate::error::one_line(error));
        self.raw(&format!("{}\n", wrapped(&line, self.stderr_width())));
    }

    /// Shows at once that something was begun.
    pub(crate) fn begin_progress(&self, line: &str) {
        if self.can_replace() {
            self.last_progress.set(Instant::now());
            self.shows_progress.set(true);
            // What is longer than a line could not be replaced.
            let n_chars = self.stderr_width().map_or(usize::MAX, |width| width - 1);
            let line: String = line.chars().take(n_chars).collect();
            self.raw(&format!("\r{}{CLEAR_LINE}", self.dimmed(&line)));
        }
    }

    fn can_replace(&self) -> bool {
        self.stderr_is_terminal && self.colour && !self.quiet
    }

    /// Shows how far something is, in place of the last such line; only where it can be replaced.
    pub(crate) fn progress(&self, line: &str) {
        if self.last_progress.get().elapsed() >= PROGRESS_INTERVAL {
            self.begin_progress(line);
        }
    }

    /// Removes the line of [`Console::progress`], if there is one.
    pub(crate) fn end_progress(&self) {
        if self.shows_progress.replace(false) {
            self.raw(&format!("\r{CLEAR_LINE}"));
        }
        self.last_progress.set(Instant::now());
    }

    fn line(&self, line: &str) {
        let line = wrapped(&self.dimmed(line), self.stderr_width());
        self.raw(&format!("{line}\n"));
    }

    fn dimmed(&self, line: &str) -> String {
        if self.stderr_is_terminal && self.colour {
            format!("{DIM}{line}{RESET}")
        } else {
            line.to_owned()
        }
    }

    fn raw(&self, text: &str) {
        // Nothing can be done about a stderr that does not take it.
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes());
        let _ = stderr.flush();
    }
}
