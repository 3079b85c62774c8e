//! A connection's socket, which neither waits for ever nor hangs up in the middle of a word.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a socket that said all it had to say waits for more of the client's bytes.
const LINGER: Duration = Duration::from_millis(500);
/// Longest time that it does so altogether.
const MAX_LINGER: Duration = Duration::from_secs(30);

/// A stream with two habits.
///
/// When the client takes nothing for `stall` of what is written, writing fails: whoever asked is
/// as good as gone, and what is made for them can stop.
///
/// When it is shut down it says so and then reads on for a while and throws away what comes. A
/// request is often refused before its body was read; closing at once would reset the connection,
/// and a client that is still sending would see that instead of the answer.
pub(crate) struct Socket<S> {
    stream: S,
    stall: Duration,
    /// Runs out when a write has waited for too long.
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Lingering>,
}

struct Lingering {
    until: Pin<Box<Sleep>>,
    end: Instant,
}

impl<S> Socket<S> {
    pub(crate) fn new(stream: S, stall: Duration) -> Socket<S> {
        Socket {
            stream,
            stall,
            stalled: None,
            lingering: None,
        }
    }

    /// What a write that gave `written` amounts to.
    fn watch<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client reads nothing",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            this.lingering = Some(Lingering {
                until: Box::pin(sleep(LINGER)),
                end: Instant::now() + MAX_LINGER,
            });
        }
        let Some(lingering) = &mut this.lingering else {
            return Poll::Ready(Ok(()));
        };
        let mut scrap = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let until = (Instant::now() + LINGER).min(lingering.end);
                    lingering.until.as_mut().reset(until);
                }
                // The client has hung up too, one way or another.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(lingering.until.as_mut().poll(context));
                    return Poll::Ready(Ok(()));
                }
            }
            if Instant::now() >= lingering.end {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_fails_when_nothing_is_read_for_too_long_and_only_then() {
        let stall = Duration::from_secs(10);
        let (near, mut far) = duplex(8);
        let mut socket = Socket::new(near, stall);
        let reader = tokio::spawn(async move {
            let mut byte = [0];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                far.read_exact(&mut byte).await.expect("a byte");
            }
            far
        });
        // Ever so slowly, it is read.
        socket.write_all(&[1; 12]).await.expect("written");
        let far = reader.await.expect("four bytes");
        let before = Instant::now();
        let error = socket.write_all(&[1; 9]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(before.elapsed().as_secs(), stall.as_secs());
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn shutting_down_reads_what_the_client_is_still_sending() {
        let (near, mut far) = duplex(1000);
        let mut socket = Socket::new(near, Duration::from_secs(10));
        let client = tokio::spawn(async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(400)).await;
                far.write_all(&[1; 1000]).await.expect("somebody reads");
            }
            let mut answer = Vec::new();
            far.read_to_end(&mut answer).await.expect("an answer");
            (answer, far)
        });
        socket.write_all(b"no").await.expect("written");
        socket.shutdown().await.expect("shut down");
        drop(socket);
        let (answer, _far) = client.await.expect("a client");
        assert_eq!(answer, b"no");

        // A client that neither sends nor hangs up is left alone soon.
        let (near, _silent) = duplex(8);
        let before = Instant::now();
        let mut socket = Socket::new(near, Duration::from_secs(10));
        socket.shutdown().await.expect("shut down");
        assert_eq!(before.elapsed().as_millis(), LINGER.as_millis());
    }
}
