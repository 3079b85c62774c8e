//! The OpenAI Chat Completions API: `/v1/chat/completions`.

mod reply;
mod request;

pub use reply::{ReasoningDisplay, ReplyShape, Stream, complete, token_count};
pub use request::{Parsed, parse};
