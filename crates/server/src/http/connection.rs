//! Connections: accepting, serving, and ending them gracefully.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;

use super::options::{MAX_HEADER_BYTES, READ_TIMEOUT};
use super::routes::Server;

/// Pause after the system refused to accept a connection, which it does when it runs out of
/// file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that connections have after the worker is done, to read what was sent to them.
const DRAIN: Duration = Duration::from_secs(2);

/// A server that listens and does not answer yet.
pub struct BoundServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens on an address; port 0 takes a free one.
///
/// # Errors
/// The address cannot be listened on.
pub async fn bind(address: SocketAddr) -> io::Result<BoundServer> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok(BoundServer { listener, address })
}

impl BoundServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` is ready, then takes no more connections, lets running requests
    /// finish within the grace of the server's options, and returns.
    pub async fn serve(self, server: Arc<Server>, shutdown: impl Future<Output = ()>) {
        let graceful = GracefulShutdown::new();
        let half_close = !server.options().half_close_cancels;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut shutdown => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Events are small and must not wait for each other.
            let _ = stream.set_nodelay(true);
            let server = Arc::clone(&server);
            let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
                let server = Arc::clone(&server);
                async move { Ok::<_, io::Error>(server.answer(request.map(Body::new)).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .half_close(half_close)
                .header_read_timeout(READ_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                // What goes wrong on a connection is the client's to notice.
                let _ = connection.await;
            });
        }
        drop(self.listener);
        let grace = server.shut_down();
        let _ = tokio::time::timeout(grace + DRAIN, graceful.shutdown()).await;
    }
}
