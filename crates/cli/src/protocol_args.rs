//! Flags of `ds4-server` for what its APIs leave open.

use ds4_server::api::{CallPieces, CompletionsPrompt, Media, Ping, Preferences, chat, responses};
use ds4_server::generation::Thinking;

use crate::switch::Switch;

/// What the server does where a request, or its API, leaves a choice.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProtocolArgs {
    /// Where chat replies have their reasoning when a request does not say
    #[arg(long, value_enum, value_name = "WHERE", default_value_t)]
    reasoning_field: FieldArg,
    /// What responses have of their reasoning when a request asks for no summary
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    responses_reasoning: ResponsesArg,
    /// Whether to think when a request to Messages does not say [default: as --default-thinking]
    #[arg(long, value_name = "on|off")]
    anthropic_default_thinking: Option<Switch>,
    /// Leave thinking out of Messages replies whose request did not ask for it
    #[arg(long)]
    anthropic_hide_default_thinking: bool,
    /// How calls are streamed
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    tool_stream: CallArg,
    /// What becomes of images and the like in what a user says
    #[arg(long, value_enum, value_name = "RULE", default_value_t)]
    media: MediaArg,
    /// How streams of chunks say that they are alive
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    ping_style: PingArg,
    /// Tell in every stream of chunks what was used
    #[arg(long)]
    always_usage: bool,
    /// Keep the `x-anthropic-` lines that one client puts first in every prompt
    #[arg(long)]
    keep_client_headers: bool,
    /// Most tokens of a text completion whose request does not say [default: as --tokens]
    #[arg(long, value_name = "N")]
    completions_default_max: Option<usize>,
    /// What the prompt of a text completion is
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    completions_mode: CompletionsArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum FieldArg {
    /// A member of that name
    #[default]
    #[value(name = "reasoning_content")]
    ReasoningContent,
    /// A member of that name
    Reasoning,
    /// Both members
    Both,
    /// In the content, between think tags
    Inline,
    /// Nowhere
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum ResponsesArg {
    /// One summary with the whole of it
    #[default]
    Summary,
    /// A content part
    Text,
    /// Nothing
    Hidden,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum CallArg {
    /// As their arguments are written
    #[default]
    Delta,
    /// Whole, when they are complete
    Call,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum MediaArg {
    /// A line of text names them
    #[default]
    Placeholder,
    /// The request is refused
    Reject,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum PingArg {
    /// By a comment
    #[default]
    Comment,
    /// By a chunk that adds nothing
    Chunk,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum CompletionsArg {
    /// Text to be continued
    #[default]
    Raw,
    /// What a user says
    Chat,
}

impl ProtocolArgs {
    /// The preferences. `on` and `off` are the thinking that the two words stand for.
    pub(crate) fn preferences(&self, on: Thinking, off: Thinking) -> Preferences {
        Preferences {
            chat_reasoning: match self.reasoning_field {
                FieldArg::ReasoningContent => chat::ReasoningDisplay::ReasoningContent,
                FieldArg::Reasoning => chat::ReasoningDisplay::Reasoning,
                FieldArg::Both => chat::ReasoningDisplay::Both,
                FieldArg::Inline => chat::ReasoningDisplay::Inline,
                FieldArg::None => chat::ReasoningDisplay::Hidden,
            },
            responses_reasoning: match self.responses_reasoning {
                ResponsesArg::Summary => responses::ReasoningDisplay::Summary,
                ResponsesArg::Text => responses::ReasoningDisplay::Text,
                ResponsesArg::Hidden => responses::ReasoningDisplay::Hidden,
            },
            messages_thinking: self.anthropic_default_thinking.map(|thinks| match thinks {
                Switch::On => on,
                Switch::Off => off,
            }),
            hides_default_thinking: self.anthropic_hide_default_thinking,
            always_usage: self.always_usage,
            keeps_client_headers: self.keep_client_headers,
            media: match self.media {
                MediaArg::Placeholder => Media::Placeholder,
                MediaArg::Reject => Media::Refuse,
            },
            ping: match self.ping_style {
                PingArg::Comment => Ping::Comment,
                PingArg::Chunk => Ping::Chunk,
            },
            calls: match self.tool_stream {
                CallArg::Delta => CallPieces::Delta,
                CallArg::Call => CallPieces::Whole,
            },
            completions_max_tokens: self.completions_default_max,
            completions_prompt: match self.completions_mode {
                CompletionsArg::Raw => CompletionsPrompt::Raw,
                CompletionsArg::Chat => CompletionsPrompt::Chat,
            },
        }
    }
}
