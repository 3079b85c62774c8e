//! A conversation, and its file. `docs/cli.md` describes the format.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_text::{Message, Role};
use serde::{Deserialize, Serialize};

use crate::options::Thinking;
use crate::prompt_input::read_text_file;

/// What `format` says in a conversation's file.
const FORMAT: &str = "ds4-conversation";
/// Version of the format.
const VERSION: u32 = 1;

/// Messages in order, the system text first if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conversation {
    /// The system text.
    pub system: Option<String>,
    /// What was said since.
    pub turns: Vec<Turn>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Turn {
    /// The person's.
    User {
        /// What was said.
        content: String,
    },
    /// The model's.
    Assistant {
        /// What was thought before.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reasoning: String,
        /// What was said.
        content: String,
        /// The reply was stopped before its end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        open: bool,
    },
}

impl Conversation {
    /// The messages as the renderer takes them.
    pub(crate) fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(Message::system);
        let turns = self.turns.iter().map(|turn| match turn {
            Turn::User { content } => Message::user(content),
            Turn::Assistant {
                reasoning,
                content,
                open,
            } => Message {
                reasoning: Some(reasoning.clone()).filter(|r| !r.is_empty()),
                open_ended: *open,
                ..Message::new(Role::Assistant, content)
            },
        });
        system.chain(turns).collect()
    }
}

/// Settings that belong to a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Whether and how hard the model thinks.
    pub thinking: Thinking,
    /// Sampling temperature.
    pub temperature: f32,
    /// Tokens sampled among; 0 is all.
    pub top_k: usize,
    /// Share of the probability sampled among.
    pub top_p: f32,
    /// Least probability, as a share of the likeliest token's.
    pub min_p: f32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    version: u32,
    settings: Settings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    messages: Vec<Turn>,
}

/// What every version of the format has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// Writes a conversation; a file that is there is replaced when the new one is complete.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn save(path: &Path, conversation: &Conversation, settings: Settings) -> Result<()> {
    let stored = Stored {
        format: FORMAT.to_owned(),
        version: VERSION,
        settings,
        system: conversation.system.clone(),
        messages: conversation.turns.clone(),
    };
    let mut text = serde_json::to_string_pretty(&stored)?;
    text.push('\n');
    replace(path, &text)
}

/// Writes a file that appears whole or not at all.
///
/// # Errors
/// It cannot be written.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(path)?;
        Ok::<(), std::io::Error>(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a conversation.
///
/// # Errors
/// The file cannot be read or is not a conversation of this version.
pub(crate) fn load(path: &Path) -> Result<(Conversation, Settings)> {
    let text = read_text_file(path)?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<(Conversation, Settings)> {
    let head: Head =
        serde_json::from_str(text).context("not a conversation of ds4: write one with /save")?;
    if head.format != FORMAT {
        bail!(
            "format {:?}, expected {FORMAT:?}: write one with /save",
            head.format
        );
    }
    if head.version != VERSION {
        bail!(
            "version {}, expected {VERSION}: written by another ds4",
            head.version
        );
    }
    let stored: Stored = serde_json::from_str(text).context("a damaged conversation")?;
    let conversation = Conversation {
        system: stored.system,
        turns: stored.messages,
    };
    Ok((conversation, stored.settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Conversation, Settings) {
        let conversation = Conversation {
            system: Some("Be brief.".into()),
            turns: vec![
                Turn::User {
                    content: "Two\nlines \u{1F980}".into(),
                },
                Turn::Assistant {
                    reasoning: "hm".into(),
                    content: "Ye".into(),
                    open: true,
                },
                Turn::User {
                    content: "?".into(),
                },
                Turn::Assistant {
                    reasoning: String::new(),
                    content: "Yes.".into(),
                    open: false,
                },
            ],
        };
        let settings = Settings {
            thinking: Thinking::Max,
            temperature: 0.7,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
        };
        (conversation, settings)
    }

    #[test]
    fn a_saved_conversation_loads_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        let (conversation, settings) = sample();
        for _ in 0..2 {
            save(&path, &conversation, settings).unwrap();
            assert_eq!(load(&path).unwrap(), (conversation.clone(), settings));
        }
        let found: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(
            found.len(),
            1,
            "saving leaves nothing else behind: {found:?}"
        );
    }

    #[test]
    fn only_a_stopped_reply_is_open_for_the_renderer() {
        let (conversation, _) = sample();
        let messages = conversation.messages();
        let roles: Vec<Role> = messages.iter().map(|m| m.role).collect();
        use Role::*;
        assert_eq!(roles, [System, User, Assistant, User, Assistant]);
        let open: Vec<bool> = messages.iter().map(|m| m.open_ended).collect();
        assert_eq!(open, [false, false, true, false, false]);
        assert_eq!(messages[2].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[4].reasoning, None);
    }

    #[test]
    fn a_file_that_is_no_conversation_is_refused_by_what_it_is() {
        for (text, expected) in [
            ("", "not a conversation of ds4"),
            ("[1]", "not a conversation of ds4"),
            (r#"{"format":"x","version":1}"#, r#"format "x""#),
            (
                r#"{"format":"ds4-conversation","version":9}"#,
                "version 9, expected 1",
            ),
            (r#"{"format":"ds4-conversation","version":1}"#, "damaged"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
