//! What every protocol asks for and gets, free of any protocol's words.
//!
//! ```text
//! HTTP task                         worker thread
//! request JSON -> Generation
//!   render, tokenise, check length
//!   Job { tokens, generation } ---> queue -> scheduler steps
//!   JSON / SSE <- ReplyEvent <----- reply parser, stop strings, budgets
//! ```

use std::time::Duration;

use ds4_engine::SamplingOptions;
use ds4_text::Message;
use ds4_text::{Effort, Mode};
use serde_json::Value;

/// Which endpoint a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/messages`.
    Messages,
    /// `/v1/responses`.
    Responses,
}

/// Whether and how hard to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// Thinking or not.
    pub mode: Mode,
    /// How hard.
    pub effort: Effort,
    /// Reasoning tokens after which `</think>` is forced.
    pub budget: Option<usize>,
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name, unique in a request.
    pub name: String,
    /// The function object written into the prompt, keys in the order received.
    pub function: Value,
    /// What its one text must follow, where the client says so.
    pub input: Option<InputGrammar>,
    /// Not shown until a tool reference in the conversation names it.
    pub deferred: bool,
    /// What the protocol needs to give a call back in the form the client
    /// declared: custom tools, namespaces. Opaque to everything else.
    pub origin: Value,
}

/// A grammar that a text follows as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputGrammar {
    /// In the Lark language.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

/// Which tools the model may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// None: the tools stay in the prompt, the DSML token is masked.
    None,
    /// At least one of these; empty means any.
    Required(Vec<String>),
    /// As it likes among these.
    Allowed(Vec<String>),
}

/// What a prompt is made from.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptSource {
    /// A conversation, normalised (chat.md 4.13), tools on its system message.
    Messages(Vec<Message>),
    /// Raw text, continued as it is.
    Text(String),
    /// Tokens, continued as they are.
    Tokens(Vec<u32>),
}

/// A JSON schema that content must follow.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputSchema {
    /// The schema.
    pub schema: Value,
    /// Whether keywords that cannot be enforced are refused rather than left out.
    pub strict: bool,
    /// Where it stands in the request, in the protocol's spelling.
    pub place: String,
}

/// A request after its protocol's words are gone.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Where it came from.
    pub endpoint: Endpoint,
    /// The model name to echo.
    pub model: String,
    /// What to continue.
    pub prompt: PromptSource,
    /// What else to continue, each with as many choices.
    pub more_prompts: Vec<PromptSource>,
    /// Choices of a reply to a prompt.
    pub n_choices: usize,
    /// Thinking.
    pub thinking: Thinking,
    /// Tools the reply may call; parsing is off when there are none.
    pub tools: Vec<Tool>,
    /// Which of them.
    pub tool_choice: ToolChoice,
    /// Whether more than one call is allowed in a reply.
    pub parallel_tool_calls: bool,
    /// What the content must look like.
    pub schema: Option<OutputSchema>,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// Most tokens to generate; `None` for all that is left.
    pub max_tokens: Option<usize>,
    /// Strings that end the content and are not part of it.
    pub stop: Vec<String>,
    /// Likeliest tokens to report for every generated one.
    pub n_top_logprobs: Option<usize>,
    /// Whether the end-of-sentence token is sampled like any other.
    pub ignore_eos: bool,
    /// Whether the client reads a stream.
    pub stream: bool,
    /// Key by which the client's requests belong together, if it has one.
    pub affinity: Option<String>,
    /// Whether the prompt may go on from what is kept, and whether it and the reply are kept.
    pub use_cache: bool,
    /// Whether the reasoning of all turns stays in the prompt, whatever the server's rule is: the
    /// prompt is longer, and what was computed of it stands.
    pub keeps_reasoning: bool,
}

impl Generation {
    /// A request that says no more than what to continue: no thinking, no tools, the whole answer
    /// at once.
    pub fn new(endpoint: Endpoint, prompt: PromptSource) -> Generation {
        Generation {
            endpoint,
            model: String::new(),
            prompt,
            more_prompts: Vec::new(),
            n_choices: 1,
            thinking: Thinking {
                mode: Mode::Chat,
                effort: Effort::None,
                budget: None,
            },
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            schema: None,
            sampling: SamplingOptions::default(),
            max_tokens: None,
            stop: Vec::new(),
            n_top_logprobs: None,
            ignore_eos: false,
            stream: false,
            affinity: None,
            use_cache: true,
            keeps_reasoning: false,
        }
    }

    /// The requests for one choice that this one is, those of a prompt one behind the other. A seed
    /// is that of the first, and the next number for the next.
    pub(crate) fn into_single(mut self) -> Vec<Generation> {
        let n_choices = std::mem::replace(&mut self.n_choices, 1);
        let more = std::mem::take(&mut self.more_prompts);
        if n_choices == 1 && more.is_empty() {
            return vec![self];
        }
        let first = std::mem::replace(&mut self.prompt, PromptSource::Tokens(Vec::new()));
        let of_prompt = |prompt: PromptSource| {
            let one = &self;
            (0..n_choices as u64).map(move |i| {
                let mut choice = one.clone();
                choice.prompt = prompt.clone();
                choice.sampling.seed = one.sampling.seed.map(|seed| seed.wrapping_add(i));
                choice
            })
        };
        std::iter::once(first)
            .chain(more)
            .flat_map(of_prompt)
            .collect()
    }
}

/// Tokens and where they were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of them, tokens that were in a cache.
    pub n_cached: usize,
    /// Tokens generated; the end-of-sentence token is not counted.
    pub n_generated: usize,
    /// Of them, tokens up to and including `</think>`.
    pub n_reasoning: usize,
}

/// Why a reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// A stop string did.
    StopString(String),
    /// It called tools.
    ToolCalls,
    /// The token limit of the request.
    Length,
    /// The context is full.
    ContextFull,
    /// The client or the server gave up.
    Cancelled,
}

/// A call in a finished reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `call_` and 32 hex digits from a cryptographic source; protocols may
    /// change the prefix.
    pub id: String,
    /// The tool, declared or not.
    pub name: String,
    /// JSON text of an object, or the beginning of one when not `complete`.
    pub arguments: String,
    /// Whether the call was read to its end.
    pub complete: bool,
}

/// A finished reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// The reasoning.
    pub reasoning: String,
    /// The content.
    pub content: String,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// Tokens.
    pub usage: Usage,
    /// Where its time went.
    pub timings: Timings,
}

/// Where the time of a request went, and what its cache hit was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings {
    /// Waiting for a slot.
    pub queue: Duration,
    /// Computing the prompt.
    pub prefill: Duration,
    /// Prompt tokens computed in that time: those that were not cached, and fewer when the request
    /// was given up before.
    pub n_prefilled: usize,
    /// Generating.
    pub decode: Duration,
    /// Where the cached tokens came from: `none`, `memory` (the slot itself), `copy` (another
    /// slot) or `disk`.
    pub cache_source: &'static str,
    /// Why the rest of the prompt was not cached, in words for the log.
    pub cache_miss: String,
}

/// A token with what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural-log probability.
    pub logprob: f32,
    /// The likeliest tokens: bytes and log probability, likeliest first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// What the worker says while a reply is made.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyEvent {
    /// It has a slot.
    Started {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Of them, tokens that need not be computed.
        n_cached: usize,
        /// Where those came from, as in [`Timings::cache_source`].
        source: &'static str,
        /// Why the rest was not cached, as in [`Timings::cache_miss`].
        why: String,
    },
    /// A part of the prompt was computed.
    Progress {
        /// Prompt tokens done.
        n_done: usize,
        /// Prompt tokens.
        n_prompt: usize,
    },
    /// More reasoning.
    Reasoning {
        /// The text.
        text: String,
        /// The tokens whose text this is, when asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// More content.
    Content {
        /// The text.
        text: String,
        /// The tokens whose text this is, when asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A call begins.
    ToolStart {
        /// Its number, from 0.
        index: usize,
        /// Its id.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments.
    ToolArguments {
        /// The call's number.
        index: usize,
        /// JSON text.
        text: String,
    },
    /// A call is complete.
    ToolEnd {
        /// The call's number.
        index: usize,
    },
    /// The reply is complete.
    Finished(Box<Outcome>),
    /// The reply cannot be finished.
    Failed(Failure),
}

/// Why a request has no reply. Every protocol has its own shape for these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind it is.
    pub kind: FailureKind,
    /// One sentence that names the field and what is accepted; never prompt text.
    pub message: String,
    /// The request's field, in the protocol's spelling.
    pub param: Option<String>,
}

/// Kinds of failure: the rows of the error table (api.md 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Bad JSON or a bad field.
    Invalid,
    /// A wish we do not grant.
    Unsupported,
    /// Content that this model cannot read, where it is not to be left out.
    UnsupportedContent,
    /// The prompt is longer than the context.
    ContextOverflow {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens of the context.
        n_context: usize,
    },
    /// No or a wrong key.
    Unauthorised,
    /// Origin or host refused.
    Forbidden,
    /// Unknown path, model or response.
    NotFound,
    /// What the request goes on from was there when it came and is gone.
    Conflict,
    /// Too many requests wait.
    Overloaded,
    /// A bug or a device failure; the request is lost, the server is not.
    Internal,
    /// Loading or shutting down.
    Unavailable,
}
