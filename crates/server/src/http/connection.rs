//! Connections: accepting, serving, and ending them gracefully.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::options::MAX_HEADER_BYTES;
use super::places::{Place, Places};
use super::routes::Server;
use super::socket::Socket;

/// Pause after the system refused to accept a connection, which it does when it runs out of
/// file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that connections have after the worker is done, to read what was sent to them.
const DRAIN: Duration = Duration::from_secs(2);
/// What a connection too many gets to read: it was not asked anything yet, so this is in the
/// shape that most clients know.
const FULL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\n",
    "content-type: application/json\r\ncontent-length: 140\r\n",
    "retry-after: 5\r\nconnection: close\r\n\r\n",
    r#"{"error":{"message":"too many connections are open; try again later","#,
    r#""type":"unavailable_error","param":null,"code":"too_many_connections"}}"#,
);

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
        let options = server.options();
        let (read_timeout, write_stall) = (options.read_timeout, options.write_stall);
        let places = Places::new(options.max_connections, options.yields_after);
        let graceful = GracefulShutdown::new();
        let half_close = !options.half_close_cancels;
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
            let socket = Socket::new(stream, write_stall);
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .half_close(half_close)
                .header_read_timeout(read_timeout)
                // More than is accepted, so that the refusal can say why.
                .max_buf_size(2 * MAX_HEADER_BYTES);
            let (server, watcher) = (Arc::clone(&server), graceful.watcher());
            match places.try_take() {
                Some(place) => {
                    tokio::spawn(serve_one(server, http, socket, place, watcher));
                }
                None => {
                    let places = Arc::clone(&places);
                    tokio::spawn(async move {
                        match places.take_over().await {
                            Some(place) => serve_one(server, http, socket, place, watcher).await,
                            None => turn_away(socket).await,
                        }
                    });
                }
            }
        }
        drop(self.listener);
        let grace = server.shut_down();
        let _ = tokio::time::timeout(grace.saturating_add(DRAIN), graceful.shutdown()).await;
    }
}

/// Serves a connection for as long as it may stay.
async fn serve_one(
    server: Arc<Server>,
    http: hyper::server::conn::http1::Builder,
    socket: Socket<TcpStream>,
    place: Place,
    watcher: Watcher,
) {
    let line = Arc::clone(&place.line);
    let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
        let (server, line) = (Arc::clone(&server), Arc::clone(&line));
        async move {
            let answer = server.answer(request.map(|body| line.sent(body))).await;
            Ok::<_, io::Error>(answer.map(|body| line.answered(body)))
        }
    });
    let connection = watcher.watch(http.serve_connection(TokioIo::new(socket), service));
    // What goes wrong on a connection is the client's to notice.
    tokio::select! {
        _ = connection => {}
        () = place.line.ends() => {}
    }
}

/// Says that there is no room for one more.
async fn turn_away(mut socket: Socket<TcpStream>) {
    // What goes wrong is the client's to notice.
    if socket.write_all(FULL.as_bytes()).await.is_ok() {
        let _ = socket.shutdown().await;
    }
}
