//! HTTP/1.1 around the protocols.
//!
//! ```text
//! connection -> paths (one spelling of each) -> guard (host, origin, key) -> route
//!   route: read body -> parse -> render, tokenize, check length -> worker -> JSON or events
//! ```
//!
//! Errors are found before the status line is sent wherever that is possible. A streamed reply
//! then begins at once, before the prompt is computed, and never falls silent for long.

mod body;
mod compile;
mod confine;
mod connection;
mod endpoints;
mod error;
mod generate;
mod guard;
mod metrics;
mod notices;
mod options;
mod page;
mod places;
mod replies;
mod routes;
mod several;
mod socket;
mod utility;
mod wire;

pub use connection::{BoundServer, bind};
pub use options::{
    Cors, DEFAULT_MAX_BODY_BYTES, DEFAULT_MAX_CONNECTIONS, DEFAULT_MAX_QUEUE, DEFAULT_MAX_TOKENS,
    DEFAULT_MODEL_ID, MAX_HEADER_BYTES, ModelFacts, READ_TIMEOUT, ServerOptions, WRITE_STALL,
    YIELDS_AFTER,
};
pub use routes::Server;
