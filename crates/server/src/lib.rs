//! HTTP: the protocols of the coding agents, and one worker that owns the engine.
//!
//! [`generation`] is the middle: every protocol in [`api`] turns its request into
//! a [`generation::Generation`] and the [`generation::ReplyEvent`]s of its reply
//! into its own JSON and events. Wire types live in [`api`] and nowhere else.

pub mod api;
pub mod bookkeeper;
pub mod calls;
pub mod generation;
pub mod http;
pub mod id;
pub mod log;
pub mod memory;
pub mod prompt;
pub mod reply;
pub mod schema;
pub mod stop_strings;
mod story;
pub mod threads;
pub mod trace;
pub mod truncate;
pub mod turns;
pub mod worker;
