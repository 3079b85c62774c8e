//! Characters, tokens and messages: everything between a conversation and token ids, in both
//! directions. Opens no files, sees no tensors.
//!
//! - [`Tokenizer`] and [`Detokenizer`]: text to ids and back, with the vocabulary of a GGUF file or
//!   of a `tokenizer.json`.
//! - [`render`]: messages to the [`Prompt`] that the model continues.
//! - [`ReplyParser`]: the model's text to reasoning, content and tool calls while it arrives;
//!   [`parse_strict`] reads the official grammar.
//! - [`json`]: JSON as prompts spell it; [`door`]: all of this over JSON lines.
//!
//! ```no_run
//! use ds4_text::{Message, RenderOptions, Tokenizer, render};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let document = "";
//! let tokenizer = Tokenizer::from_tokenizer_json(document)?;
//! let messages = [Message::system("Be brief."), Message::user("Who was Ada Lovelace?")];
//! let prompt = render(&messages, &RenderOptions::default())?;
//! let ids = tokenizer.encode_prompt(&prompt);
//! # let _ = ids;
//! # Ok(())
//! # }
//! ```
//!
//! `docs/chat.md` describes the formats and every rule.

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
pub use prompt::{Landmark, MarkerText, Passage, Prompt, ReplySpan};
pub use render::{Effort, Mode, RenderError, RenderOptions, Revision, render};
pub use strict::{StrictError, parse_strict};
pub use tokenizer::{Tokenizer, UnknownToken};
pub use vocabulary::{LoadError, ProtocolTokens};
