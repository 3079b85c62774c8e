//! What a server does where a request, or its API, leaves a choice.

use crate::api::{chat, responses};
use crate::generation::Thinking;

/// What a server does where a request, or its API, leaves a choice. The default is what suits the
/// clients we know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// What becomes of the reasoning of a chat reply whose request does not say.
    pub chat_reasoning: chat::ReasoningDisplay,
    /// What becomes of the reasoning of a response whose request asks for no summary.
    pub responses_reasoning: responses::ReasoningDisplay,
    /// Thinking when a request to Messages says nothing of it; `None` for what the other APIs do.
    pub messages_thinking: Option<Thinking>,
    /// Whether Messages leaves out the thinking that a request did not ask for.
    pub hides_default_thinking: bool,
    /// Whether streams of chunks tell what was used without being asked.
    pub always_usage: bool,
    /// Whether the lines that one client puts first in every prompt, for its vendor's accounting,
    /// stay there.
    pub keeps_client_headers: bool,
    /// What becomes of images and the like in what a user says.
    pub media: Media,
    /// How a stream of chunks says that it is alive.
    pub ping: Ping,
    /// How a call is streamed.
    pub calls: CallPieces,
    /// Most tokens of a text completion whose request does not say; `None` for what the other
    /// APIs do.
    pub completions_max_tokens: Option<usize>,
    /// What the prompt of a text completion is.
    pub completions_prompt: CompletionsPrompt,
}

/// What becomes of images and the like in what a user says. In the results of tools they are
/// always named, because a client sends those again with every turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Media {
    /// A line of text names them.
    #[default]
    Placeholder,
    /// The request is refused.
    Refuse,
}

/// How a stream of chunks says that it is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ping {
    /// By a comment, which event parsers skip.
    #[default]
    Comment,
    /// By a chunk that adds nothing, for clients that count events and not bytes.
    Chunk,
}

/// How a call is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallPieces {
    /// As its arguments are written.
    #[default]
    Delta,
    /// In one go when it is complete.
    Whole,
}

/// What the prompt of a text completion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionsPrompt {
    /// Text that is continued.
    #[default]
    Raw,
    /// What a user says.
    Chat,
}
