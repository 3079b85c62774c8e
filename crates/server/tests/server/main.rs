//! The server, with a source of tokens that says what a test wrote down, and with a real model.

mod calls;
mod http;
mod protocols;
mod script;
mod web;
mod worker;
