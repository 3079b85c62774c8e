//! The command line: `ds4` and `ds4-server`.
//!
//! Arguments as typed become options, which a command runs.

mod args;
mod catalog;
mod chat;
mod commands;
mod console;
mod conversation;
mod ds4;
mod error;
mod file_args;
mod folders;
mod interrupt;
mod kv_args;
mod markdown_style;
mod model;
mod model_choice;
mod options;
mod other_names;
mod prompt_input;
#[cfg(feature = "server")]
mod protocol_args;
#[cfg(feature = "pull")]
mod pull;
mod quantize;
mod reply_writer;
#[cfg(feature = "server")]
mod server;
mod states;
#[cfg(feature = "server")]
mod stop;
#[cfg(feature = "server")]
mod store_args;
mod suggestion;
mod sums;
#[cfg(feature = "server")]
mod switch;
mod units;
mod version;
mod word_wrap;

pub use ds4::main as ds4;
#[cfg(feature = "server")]
pub use server::main as ds4_server;
