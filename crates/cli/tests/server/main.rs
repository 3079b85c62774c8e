//! `ds4-server`, run, killed and told to stop as a process.
#![cfg(unix)]

mod kill;
mod process;
mod shutdown;
