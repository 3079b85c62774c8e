//! A server on a free port, and a client that sees every byte.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, LockResult, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ds4_engine::store::TurnLog;
use ds4_server::http::{ModelFacts, Server, ServerOptions, bind};
use ds4_server::worker::TokenSource;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::script::{Behaviour, Script, ScriptedSource, Seen, tokenizer};

/// Longest wait of a test for bytes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) log: Lines,
    pub(crate) server: Arc<Server>,
    stop: Option<oneshot::Sender<()>>,
}

/// The lines of a server's log.
pub(crate) struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    server: Arc<Server>,
}

impl Lines {
    /// All of them, those of the requests that are just over too.
    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, Vec<String>>> {
        self.server.settle();
        self.lines.lock()
    }

    /// Line `index`, once it is there.
    pub(crate) async fn line(&self, index: usize) -> String {
        let line = async {
            loop {
                if let Some(line) = self.lock().unwrap().get(index) {
                    return line.clone();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let line = tokio::time::timeout(PATIENCE, line).await;
        line.unwrap_or_else(|_| panic!("no line {index} in the log"))
    }
}

impl Web {
    pub(crate) async fn start<T: Into<Script>>(
        behaviour: Behaviour,
        options: ServerOptions,
        scripts: impl IntoIterator<Item = T>,
    ) -> Web {
        let web = Web::loading(options).await;
        web.load(behaviour, scripts);
        web
    }

    /// A server whose model is not there yet.
    pub(crate) async fn loading(options: ServerOptions) -> Web {
        Web::loading_at(([127, 0, 0, 1], 0).into(), options).await
    }

    /// The same at an address, such as that of a server that has stopped.
    pub(crate) async fn loading_at(address: SocketAddr, mut options: ServerOptions) -> Web {
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        options.log = Arc::new(move |line| lines.lock().unwrap().push(line.to_string()));
        let begun = Instant::now();
        let bound = loop {
            match bind(address).await {
                Ok(bound) => break bound,
                // The server that was there goes in its own time.
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{address}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let address = bound.address();
        let server = Server::new(options, true);
        let (stop, stopped) = oneshot::channel();
        tokio::spawn({
            let server = Arc::clone(&server);
            async move {
                bound
                    .serve(server, async move {
                        let _ = stopped.await;
                    })
                    .await;
            }
        });
        Web {
            address,
            seen: Arc::new(Mutex::new(Seen::default())),
            log: Lines {
                lines: log,
                server: Arc::clone(&server),
            },
            server,
            stop: Some(stop),
        }
    }

    pub(crate) fn load<T: Into<Script>>(
        &self,
        behaviour: Behaviour,
        scripts: impl IntoIterator<Item = T>,
    ) {
        let scripts: VecDeque<Script> = scripts.into_iter().map(Into::into).collect();
        let source = ScriptedSource::new(
            tokenizer(),
            behaviour.clone(),
            Arc::new(Mutex::new(scripts)),
            Arc::clone(&self.seen),
        );
        self.load_source(source, &behaviour);
    }

    /// Gives it this source of tokens.
    pub(crate) fn load_source(&self, source: impl TokenSource + 'static, behaviour: &Behaviour) {
        self.load_with_log(source, behaviour, None);
    }

    /// Gives it this source of tokens, and a log in which turns outlive it.
    pub(crate) fn load_with_log(
        &self,
        source: impl TokenSource + 'static,
        behaviour: &Behaviour,
        log: Option<TurnLog>,
    ) {
        let facts = ModelFacts {
            name: "Scripted".to_owned(),
            file_name: "scripted.gguf".to_owned(),
            n_context: behaviour.context,
            n_context_train: behaviour.context,
            n_params: 1,
            size_bytes: 2,
            n_slots: behaviour.n_slots,
        };
        self.server
            .load(source, tokenizer(), facts, log)
            .expect("a thread");
    }

    /// Tells it to stop.
    pub(crate) fn begin_stop(&mut self) {
        let _ = self.stop.take().expect("once").send(());
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], &body.to_string()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    /// One request on a connection of its own, and the whole answer.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let mut connection = self.open(method, path, headers, body).await;
        let mut bytes = Vec::new();
        tokio::time::timeout(PATIENCE, connection.read_to_end(&mut bytes))
            .await
            .unwrap_or_else(|_| panic!("{method} {path} has no end"))
            .expect("bytes");
        Answer::parse(&bytes)
    }

    /// A connection on which a request was sent and nothing was read.
    pub(crate) async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> TcpStream {
        let body = body.as_ref();
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        // A server that refuses may close before it has read everything.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(body).await;
        stream
    }
}

/// Reads until the text holds `what`; what was read.
pub(crate) async fn read_until(stream: &mut TcpStream, what: &str) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains(what) {
            return text;
        }
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .unwrap_or_else(|_| panic!("no {what:?} in {text}"))
            .expect("bytes");
        assert!(n > 0, "the stream ended without {what:?}: {text}");
        bytes.extend_from_slice(&buffer[..n]);
    }
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a header block");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let chunked = headers
            .iter()
            .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        Answer {
            status: status.and_then(|s| s.parse().ok()).expect("a status"),
            body: if chunked {
                unchunk(body)
            } else {
                body.to_owned()
            },
            headers,
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The events of a stream: names (empty where there is none) and data. Comments are left out.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<(String, Value)> {
        assert_eq!(self.status, 200, "{self:?}");
        self.body
            .split("\n\n")
            .filter(|event| !event.is_empty() && !event.starts_with(':'))
            .map(|event| {
                let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name));
                let data = field("data: ").unwrap_or_else(|| panic!("no data in {event:?}"));
                let name = field("event: ").unwrap_or_default().to_owned();
                if data == "[DONE]" {
                    return ("[DONE]".to_owned(), Value::Null);
                }
                (name, serde_json::from_str(data).expect("JSON"))
            })
            .collect()
    }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        if size == 0 {
            break;
        }
        out += &rest[..size];
        body = rest[size..]
            .strip_prefix("\r\n")
            .expect("the end of a chunk");
    }
    out
}
