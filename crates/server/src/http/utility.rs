//! Work for developers' tools and counts, which may be heavy and is nobody's reply.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::error::HttpError;
use crate::generation::{Failure, FailureKind};

/// Such works at once. Others wait, and what waits has its body counted.
const MAX_AT_ONCE: usize = 2;

/// Where such work runs: on threads that no connection is waited for on.
pub(super) struct Utility {
    room: Arc<Semaphore>,
}

impl Default for Utility {
    fn default() -> Utility {
        Utility {
            room: Arc::new(Semaphore::new(MAX_AT_ONCE)),
        }
    }
}

impl Utility {
    /// Runs a work when it is its turn.
    ///
    /// # Errors
    /// Its own, or a bug in it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, HttpError> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.room).acquire_owned().await.ok();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        let failed = |_| HttpError::new(FailureKind::Internal, "reading the text failed by a bug");
        Ok(done.await.map_err(failed)??)
    }
}
