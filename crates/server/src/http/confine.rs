//! Panics that end one request.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

/// What is left of a future that panicked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Runs a future; a panic in it is its result and nobody else's. What it shared with others must
/// be whole without it: locks are taken over by whoever comes next.
pub(crate) async fn confine<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    poll_fn(
        move |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => std::task::Poll::Ready(Err(Panicked)),
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_result() {
        assert_eq!(confine(async { 7 }).await, Ok(7));
        let bug = async {
            tokio::task::yield_now().await;
            panic!("as it should");
        };
        assert_eq!(confine(bug).await, Err::<(), _>(Panicked));
    }
}
