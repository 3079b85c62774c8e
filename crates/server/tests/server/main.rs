//! The server, with a source of tokens that says what a test wrote down, and with a real model.

mod http;
mod replay;
mod script;
mod web;
mod worker;
