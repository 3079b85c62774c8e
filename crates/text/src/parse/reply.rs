//! What a reply parser is told, and what it tells.

/// What the first character of the text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The prompt ends in `<think>`.
    Reasoning,
    /// The prompt ends in `</think>`.
    Content,
    /// The prompt ends inside reasoning that is to be continued.
    WithinReasoning,
    /// The prompt ends inside content that is to be continued.
    WithinContent,
}

/// Why the text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended it.
    Stop,
    /// A limit ended it.
    Length,
    /// Nobody waits for it any more.
    Cancelled,
}

/// What became known with a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// More reasoning.
    ReasoningDelta(String),
    /// More content.
    ContentDelta(String),
    /// A call begins.
    ToolStart {
        /// Its number, from 0.
        index: usize,
        /// The tool, declared or not.
        name: String,
    },
    /// More of the arguments' JSON text.
    ToolArgsDelta {
        /// The call's number.
        index: usize,
        /// The text.
        text: String,
    },
    /// A call is complete; its arguments are a JSON object.
    ToolEnd {
        /// The call's number.
        index: usize,
    },
    /// The block is closed: nothing that follows will be read, and generation should end.
    BlockDone,
    /// The block cannot be read. Nothing that follows will be read.
    Malformed {
        /// What is wrong with it.
        detail: String,
    },
}

/// A call as the model made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedCall {
    /// The tool, declared or not.
    pub name: String,
    /// JSON text of an object, or the beginning of one while not `complete`.
    pub arguments: String,
    /// Whether the call was read to its end. Only then may it be executed.
    pub complete: bool,
}

/// All that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The reasoning.
    pub reasoning: String,
    /// The content.
    pub content: String,
    /// The calls, in order.
    pub tool_calls: Vec<ParsedCall>,
    /// What is wrong with the block of calls, if anything.
    pub malformed: Option<String>,
    /// Whether a block of calls ended the reasoning in place of `</think>`.
    pub implicit_think_end: bool,
    /// Byte offset in the text where the block begins, its leading newlines included.
    pub block_start: Option<usize>,
}

/// Where the end of the text read so far stands; what a sampler and a budget need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In reasoning.
    Reasoning,
    /// In content.
    Content,
    /// In the markup of a call, where only one spelling is right: tags, names, and non-string
    /// JSON outside its strings.
    Markup,
    /// In the free text of a call's arguments.
    Value,
    /// Behind the block.
    Done,
}
