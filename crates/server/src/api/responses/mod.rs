//! The OpenAI Responses API: `/v1/responses` and what hangs on it.

mod origin;
mod reply;

pub use origin::{Origin, Origins, flat_name};
pub use reply::{ReasoningDisplay, ReplyShape, Stream, complete, token_count};
