//! Text that the user hands over: from a flag, a file or standard input.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The largest file taken for a prompt, bytes. A million tokens of text are about 4 MB.
pub(crate) const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Where the prompt is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PromptInput {
    /// On the command line.
    Text(String),
    /// In a file.
    File(PathBuf),
    /// On standard input.
    Stdin,
    /// On standard input, if there is anything, and this text after it.
    StdinAnd(String),
}

/// What standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// A person.
    Terminal,
    /// A pipe or a file: somebody put text there.
    Text,
    /// Something else, such as the empty device, or nothing.
    Device,
}

impl Stdin {
    /// What it is for this process.
    pub(crate) fn of_process() -> Stdin {
        if io::stdin().is_terminal() {
            Stdin::Terminal
        } else if is_pipe_or_file() {
            Stdin::Text
        } else {
            Stdin::Device
        }
    }

    /// Whether text beside a question is to be read there.
    pub(crate) fn holds_text(self) -> bool {
        self == Stdin::Text
    }
}

#[cfg(unix)]
fn is_pipe_or_file() -> bool {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileTypeExt as _;
    let metadata = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| File::from(fd).metadata());
    metadata.is_ok_and(|m| m.file_type().is_fifo() || m.is_file())
}

/// Elsewhere a pipe cannot be told from nothing at all without waiting for it.
#[cfg(not(unix))]
fn is_pipe_or_file() -> bool {
    false
}

/// Time after which somebody who forgot standard input is told that it is read.
const STDIN_SILENCE: Duration = Duration::from_secs(2);

/// The text on standard input; says that it waits when nothing comes for a while.
fn read_stdin() -> Result<String> {
    let arrived = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let arrived = Arc::clone(&arrived);
        move || {
            std::thread::sleep(STDIN_SILENCE);
            if !arrived.load(Ordering::Relaxed) {
                // Where nobody takes the message, nobody waits for it.
                let _ = writeln!(
                    io::stderr(),
                    "reading standard input; `< /dev/null` leaves it out"
                );
            }
        }
    });
    let text = read_text(
        Noticed {
            source: io::stdin().lock(),
            arrived: &arrived,
        },
        STDIN_NAME,
    );
    arrived.store(true, Ordering::Relaxed);
    text
}

/// A source that notices its first byte.
struct Noticed<'a, R> {
    source: R,
    arrived: &'a AtomicBool,
}

impl<R: Read> Read for Noticed<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(bytes)?;
        self.arrived.store(true, Ordering::Relaxed);
        Ok(n)
    }
}

/// Standard input in messages.
const STDIN_NAME: &str = "standard input";

impl PromptInput {
    /// Reads it.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is not UTF-8, or holds nothing but white space.
    pub(crate) fn read(&self) -> Result<String> {
        let (text, name) = match self {
            PromptInput::Text(text) => (text.clone(), "the prompt".to_owned()),
            PromptInput::File(path) => (read_text_file(path)?, path.display().to_string()),
            PromptInput::Stdin => (read_stdin()?, STDIN_NAME.to_owned()),
            PromptInput::StdinAnd(question) => {
                let text = read_stdin()?;
                (joined(&text, question), "the prompt".to_owned())
            }
        };
        if text.trim().is_empty() {
            bail!("{name} is empty: give the model something to answer, e.g. -p \"Hello\"");
        }
        Ok(text)
    }
}

/// A text and the question about it.
fn joined(text: &str, question: &str) -> String {
    if text.trim().is_empty() {
        return question.to_owned();
    }
    format!("{}\n\n{question}", text.trim_end_matches('\n'))
}

/// The text of a file.
///
/// # Errors
/// It cannot be read, is larger than [`MAX_PROMPT_BYTES`], or is not UTF-8.
pub(crate) fn read_text_file(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        bail!("cannot read {name}: it is a folder, expected a text file");
    }
    read_text(file, &name)
}

fn read_text(source: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    source
        .take(MAX_PROMPT_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        bail!(
            "{name} is larger than {} MB, the most that is read as a prompt",
            MAX_PROMPT_BYTES >> 20
        );
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!(
            "{name} is not UTF-8 text: byte 0x{:02x} at offset {at}; convert it first, e.g. with \
             `iconv -t UTF-8`",
            e.as_bytes()[at]
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_no_model_can_answer_is_refused_by_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("latin1"), b"caf\xe9").unwrap();
        std::fs::write(path("blank"), " \n\t").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        let file = |name: &str| PromptInput::File(path(name));
        for (input, expected) in [
            (PromptInput::Text(String::new()), "the prompt is empty"),
            (PromptInput::Text(" \n".into()), "the prompt is empty"),
            (file("blank"), "blank is empty"),
            (file("latin1"), "byte 0xe9 at offset 3"),
            (file("folder"), "it is a folder"),
            (file("missing"), "cannot read"),
        ] {
            let error = format!("{:#}", input.read().unwrap_err());
            assert!(error.contains(expected), "{input:?}: {error}");
        }
        let text = PromptInput::Text(" two words\n".into());
        assert_eq!(
            text.read().unwrap(),
            " two words\n",
            "a prompt is sent as it is"
        );
    }

    #[test]
    fn a_text_goes_before_the_question_about_it() {
        assert_eq!(joined("a\nb\n\n", "what?"), "a\nb\n\nwhat?");
        assert_eq!(joined(" \n", "what?"), "what?");
    }

    #[test]
    fn a_source_without_end_is_cut_off_at_the_limit() {
        let error = read_text(io::repeat(b'a'), "endless").unwrap_err();
        assert!(error.to_string().contains("larger than 64 MB"), "{error}");
    }
}
