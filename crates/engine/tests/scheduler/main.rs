//! What must be true of a scheduler, on a small golden model.

mod disk;
mod harness;
mod history;
mod requests;
mod reuse;
mod scored;
