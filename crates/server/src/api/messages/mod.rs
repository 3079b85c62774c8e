//! The Anthropic Messages API: `/v1/messages` and `/v1/messages/count_tokens`.

mod reply;
mod request;
mod thread;

pub use reply::{
    ReplyShape, Stream, ThinkingDisplay, call_id, complete, said, token_count, tool_use_id,
};
pub use request::{Parsed, parse, parse_with_threads};
pub use thread::{NoThreads, Thread, ThreadStore};
