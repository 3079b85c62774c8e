//! What coding agents need of the server, and a server for them to be tried against.
//!
//! The server is the real one: HTTP, worker, scheduler, the built-in model, a store on disk. The
//! model computes every token, but which token it says is written down: [`actor`] narrows its
//! choice to the lines of a [`play`], which looks at the tools that a prompt declares and at the
//! results that have come, as a model would. So an agent's own tools are called by their own names
//! and schemas, whatever the built-in model could have done with them.
//!
//! To try a real agent, let the server run until it is stopped:
//!
//! ```text
//! DS4_AGENTS_PORT=8000 cargo test -p ds4-server --test agents -- --ignored --nocapture
//! ```
//!
//! and set the agent up as docs/agents.md says. The play knows these requests, in any words around
//! them:
//!
//! - "Reply with one short sentence": says hello;
//! - "Read the file PATH": reads it, and says the secret word that stands there after
//!   "The secret word is";
//! - "Create the file PATH" and "number of lines in PATH": reads and counts the lines of the
//!   second in two calls at once, writes the number into the first, and says DONE;
//! - "Look at the image PATH": asks the agent to show it;
//! - "Load the tool NAME": finds it with the agent's tool search, and calls it.
//!
//! Every request leaves its line on the standard error, with what of its prompt was cached.

#[path = "../common/actor.rs"]
mod actor;
mod play;
mod stage;
mod turns;

use std::io::Write as _;

use stage::Stage;

/// Tokens of a slot: the longest first prompt of an agent has some 21,000 of this vocabulary.
const CONTEXT: usize = 65_536;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "serves coding agents, which must be installed, until it is stopped"]
async fn serve_agents_until_stopped() {
    let port = std::env::var("DS4_AGENTS_PORT").map_or(8000, |port| {
        port.parse().expect("DS4_AGENTS_PORT is a port number")
    });
    let stage = Stage::open(port, CONTEXT, |line| {
        let mut out = std::io::stderr().lock();
        writeln!(out, "{line}").expect("standard error takes a line");
    })
    .await;
    eprintln!("listening on http://{}", stage.address);
    std::future::pending::<()>().await;
}
