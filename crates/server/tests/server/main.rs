//! The server, with a source of tokens that says what a test wrote down, and with a real model.

mod backend;
mod bad_input;
mod bench;
mod calls;
mod connections;
mod endings;
mod http;
mod lost;
mod mutants;
mod operations;
mod protocols;
mod replay;
mod script;
mod several;
mod threads;
mod web;
mod worker;
