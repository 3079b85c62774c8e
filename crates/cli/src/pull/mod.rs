//! Fetching a file: many connections, and nothing lost when any of them, or the program, ends.
//!
//! The bytes go to `.NAME.part`, and what is on disk of it is written down in `.NAME.part.json`
//! after it was flushed there ([`part`]). [`remote`] speaks HTTP and notices when the file on the
//! server is not the one that was begun; [`fetch`] runs the connections. The file gets its name
//! when its length, its SHA-256 where the server states one, and its GGUF table are right.

mod fetch;
mod finish;
mod part;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use fetch::{End, fetch};
pub(crate) use finish::{Finished, check, check_and_name};
pub(crate) use part::Part;
pub(crate) use remote::Remote;

/// What is wanted, and how.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Where the hub is, such as `https://huggingface.co`; no slash at the end.
    pub endpoint: String,
    /// `owner/name` there.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Name in the repository; may have folders in it.
    pub file: String,
    /// Sent to the endpoint, and nowhere else.
    pub token: Option<String>,
    /// The folder that the file goes to.
    pub dir: PathBuf,
    /// Connections at once.
    pub n_connections: usize,
    /// Bytes of a piece, which one request fetches.
    pub piece_bytes: u64,
    /// Silence after which a connection is given up.
    pub stall: Duration,
    /// Failures in a row, with no byte between them, after which the pull is given up.
    pub n_failures: usize,
}

impl Order {
    /// The last part of the file's name.
    pub(crate) fn name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }

    /// Where the file will be.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(self.name())
    }
}

/// A file as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Length.
    pub n_bytes: u64,
    /// What the server calls this content; empty when it does not say.
    pub etag: String,
    /// SHA-256, where the server states it.
    pub sha256: Option<String>,
    /// Whether parts of the file can be asked for.
    pub has_ranges: bool,
}

impl Identity {
    /// Whether two answers speak of the same content.
    pub(crate) fn same(&self, other: &Identity) -> bool {
        self.n_bytes == other.n_bytes && self.etag == other.etag
    }
}

/// Why a request did not do what it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is worth trying again, after this time where the server asks for it.
    Again(String, Option<Duration>),
    /// The server has another content than the one that was begun.
    Changed,
    /// Trying again changes nothing.
    Fatal(anyhow::Error),
}
