//! The OpenAI Responses API: `/v1/responses` and what hangs on it.

mod input;
mod item;
mod origin;
mod replay;
mod reply;
mod request;
mod store;

pub(crate) use origin::raw_input;
pub use origin::{Origin, Origins, flat_name};
pub use replay::replay;
pub use reply::{ReasoningDisplay, ReplyShape, Stream, complete, token_count};
pub use request::{Parsed, parse, parse_with_store};
pub use store::{
    MAX_AGE_S, MemoryStore, NoStore, ResponseStore, StoredResponse, deleted, input_items,
};
