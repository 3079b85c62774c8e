//! Characters, tokens and messages.

pub mod door;
pub mod json;
pub mod markers;
pub mod message;
pub mod splitter;

mod bpe;
mod detokenizer;
mod dsml;
mod parse;
mod prompt;
mod render;
mod strict;
mod tokenizer;
mod tokenizer_json;
mod vocabulary;

pub use detokenizer::{Detokenizer, Utf8Stream};
pub use message::{Message, Role, Task, ToolCall};
pub use parse::{EndReason, Event, ParsedCall, Phase, Reply, ReplyParser, Start, ToolSchemas};
pub use prompt::{MarkerText, Prompt, ReplySpan};
pub use render::{Effort, Mode, RenderError, RenderOptions, Revision, render};
pub use strict::{StrictError, parse_strict};
pub use tokenizer::{Tokenizer, UnknownToken};
pub use vocabulary::{LoadError, ProtocolTokens};
