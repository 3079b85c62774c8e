//! Text that the user hands over: from a flag, a file or standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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
}

impl PromptInput {
    /// Reads it.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is not UTF-8, or holds nothing but white space.
    pub(crate) fn read(&self) -> Result<String> {
        let (text, name) = match self {
            PromptInput::Text(text) => (text.clone(), "the prompt".to_owned()),
            PromptInput::File(path) => (read_text_file(path)?, path.display().to_string()),
            PromptInput::Stdin => {
                let name = "standard input".to_owned();
                (read_text(io::stdin().lock(), &name)?, name)
            }
        };
        if text.trim().is_empty() {
            bail!("{name} is empty: give the model something to answer, e.g. -p \"Hello\"");
        }
        Ok(text)
    }
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
    fn a_source_without_end_is_cut_off_at_the_limit() {
        let error = read_text(io::repeat(b'a'), "endless").unwrap_err();
        assert!(error.to_string().contains("larger than 64 MB"), "{error}");
    }
}
