//! What a conversation leaves on disk for the next time: its text, the model's own tokens of it, and
//! the states from which they need not be computed again. `docs/cli.md` says where.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::input::private_folder;
use crate::console::Console;
use crate::conversation::{self, Conversation, Settings};
use crate::folders;
use crate::model::{Model, Spoken};
use crate::prompt_input::read_text_file;

/// Bytes that the states of conversations may take.
const STATES_BYTES: u64 = 4 << 30;

/// The folder, if anything is kept.
#[derive(Debug)]
pub(super) struct Kept {
    folder: Option<PathBuf>,
}

impl Kept {
    /// In the user's folder of states, or nowhere.
    pub(super) fn new(is_private: bool) -> Kept {
        let folder = folders::state().filter(|_| !is_private);
        Kept {
            folder: folder.map(|folder| folder.join("last")),
        }
    }

    fn conversation(folder: &Path) -> PathBuf {
        folder.join("conversation.json")
    }

    fn tokens(folder: &Path) -> PathBuf {
        folder.join("tokens.json")
    }

    /// The model with a place for its states. A folder that cannot be used is said, and nothing is
    /// kept there.
    pub(super) fn with_states(&self, model: Model, console: &Console) -> Result<Model> {
        let Some(folder) = &self.folder else {
            return Ok(model);
        };
        if let Err(error) = private_folder(folder) {
            console.note(&format!("{}: {error}", folder.display()));
            return Ok(model);
        }
        model
            .keep_states(&folder.join("states"), STATES_BYTES)
            .context("--private keeps nothing there")
    }

    /// Messages of the conversation that is kept, if there is one.
    pub(super) fn n_messages(&self) -> Option<usize> {
        let folder = self.folder.as_ref()?;
        let (conversation, _) = conversation::load(&Kept::conversation(folder)).ok()?;
        Some(conversation.turns.len()).filter(|n| *n > 0)
    }

    /// Writes the conversation; an empty one is not worth that of the last time.
    pub(super) fn write(
        &self,
        conversation: &Conversation,
        settings: Settings,
        spoken: &Spoken,
    ) -> Result<()> {
        let Some(folder) = self
            .folder
            .as_ref()
            .filter(|_| !conversation.turns.is_empty())
        else {
            return Ok(());
        };
        conversation::save(&Kept::conversation(folder), conversation, settings)?;
        let tokens = Kept::tokens(folder);
        conversation::replace(&tokens, &serde_json::to_string(spoken)?)
    }

    /// What was kept. Tokens that are damaged or of another conversation match no text and are of
    /// no use, and of no harm.
    ///
    /// # Errors
    /// Nothing is kept, or it cannot be read.
    pub(super) fn read(&self) -> Result<(Conversation, Settings, Spoken)> {
        let Some(folder) = &self.folder else {
            bail!("nothing is kept with --private");
        };
        let path = Kept::conversation(folder);
        if !path.exists() {
            bail!("there is no conversation to go on with");
        }
        let (conversation, settings) = conversation::load(&path)?;
        let spoken = read_text_file(&Kept::tokens(folder)).ok();
        let spoken = spoken.and_then(|text| serde_json::from_str(&text).ok());
        Ok((conversation, settings, spoken.unwrap_or_default()))
    }
}
