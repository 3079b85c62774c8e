//! Compiling what clients send, where it can be given up.
//!
//! The library that compiles schemas has limits of its own, but cannot be interrupted. A
//! compilation therefore has a thread that nobody needs to wait for: its request waits for a while,
//! a thread that goes on alone keeps one of a few places, and the program ends without it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use crate::generation::{Failure, FailureKind};

/// Compilations at once.
const MAX_THREADS: usize = 2;
/// Longest time that a request waits for a place or for its compilation.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Where compilations run.
pub(super) struct Compilations {
    room: Arc<Semaphore>,
    max_time: Duration,
}

impl Default for Compilations {
    fn default() -> Compilations {
        Compilations {
            room: Arc::new(Semaphore::new(MAX_THREADS)),
            max_time: MAX_TIME,
        }
    }
}

impl Compilations {
    /// Runs a compilation.
    ///
    /// # Errors
    /// Its own, or that there was no place, no end or no thread in time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        compile: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = Arc::clone(&self.room).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(self.max_time, place).await else {
            return Err(failure(
                FailureKind::Overloaded,
                "schemas of other requests are still being compiled; try again later",
            ));
        };
        let (done, result) = oneshot::channel();
        let thread = std::thread::Builder::new().name("ds4-compile".to_owned());
        let spawned = thread.spawn(move || {
            // Whoever asked may have given up.
            let _ = done.send(compile());
            drop(place);
        });
        if spawned.is_err() {
            let message = "the system gives no thread to compile a schema; try again later";
            return Err(failure(FailureKind::Overloaded, message));
        }
        match tokio::time::timeout(self.max_time, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(failure(
                FailureKind::Internal,
                "compiling the schema failed by a bug",
            )),
            Err(_) => Err(failure(
                FailureKind::Unsupported,
                format!(
                    "the schema takes longer than the {} s that there are to compile it",
                    self.max_time.as_secs_f64()
                ),
            )),
        }
    }
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
        param: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_compilation_without_end_keeps_its_place_and_nobody_waiting() {
        let compilations = Compilations::default();
        for _ in 0..MAX_THREADS {
            let given_up = compilations.run(|| -> Result<(), Failure> {
                loop {
                    std::thread::park();
                }
            });
            let failure: Failure = given_up.await.expect_err("no end");
            assert_eq!(failure.kind, FailureKind::Unsupported);
        }
        let refused = compilations.run(|| Ok(())).await.expect_err("no place");
        assert_eq!(refused.kind, FailureKind::Overloaded);
    }

    #[tokio::test]
    async fn a_bug_in_a_compilation_is_its_requests_matter() {
        let compilations = Compilations::default();
        for _ in 0..2 * MAX_THREADS {
            let failed = compilations.run(|| -> Result<(), Failure> { panic!("as it should") });
            let failure = failed.await.expect_err("a bug");
            assert_eq!(failure.kind, FailureKind::Internal);
        }
        assert_eq!(compilations.run(|| Ok(7)).await, Ok(7));
    }
}
