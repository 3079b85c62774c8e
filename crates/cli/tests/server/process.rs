//! The server's process, and a client that reads whole answers.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait of a test for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// A running server, in an empty home.
pub(crate) struct Running {
    child: Child,
    home: TempDir,
    pub(crate) address: SocketAddr,
}

impl Running {
    /// The small model behind a free port, with its states in a folder if there is one.
    pub(crate) fn start(store: Option<&Path>, flags: &[&str]) -> Running {
        let home = tempfile::tempdir().expect("a temporary folder");
        let log = File::create(home.path().join("log")).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ds4-server"));
        command
            .args(["--port", "0", "-t", "2"])
            .args(flags)
            .env("HOME", home.path())
            .env_remove("DS4_MODEL")
            .env_remove("DS4_API_KEY")
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(store) = store {
            command.arg("--kv-disk-dir").arg(store);
            command.args(["--kv-cache-min-tokens", "64", "--kv-keep-free-mb", "0"]);
        }
        let child = command.spawn().expect("ds4-server starts");
        let mut running = Running {
            child,
            home,
            address: ([127, 0, 0, 1], 0).into(),
        };
        let log = running.await_log("listening on http://");
        let address = log.split("listening on http://").nth(1).expect("just seen");
        let address = address.split(',').next().expect("an address");
        running.address = address.parse().expect("an address");
        running
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).expect("the log")
    }

    /// Waits for words in the log.
    pub(crate) fn await_log(&mut self, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if log.contains(words) && log.ends_with('\n') {
                return log;
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "no {words:?} in {log}, {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The log when so many requests with a reply have left their line.
    pub(crate) fn await_lines(&self, n: usize) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if log.matches(" finish=").count() >= n && log.ends_with('\n') {
                return log;
            }
            assert!(begun.elapsed() < PATIENCE, "{n} lines are not in {log}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it lives");
    }

    /// Waits for the end of the process.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "it does not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills it as the system does.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.ended().signal(), Some(9));
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.ended().success(), "{}", self.log());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection on which a request was sent.
pub(crate) fn open(address: SocketAddr, path: &str, body: &Value) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(stream)
}

/// The body of the answer to a GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("text");
    let (_, body) = text.split_once("\r\n\r\n").expect("a head");
    body.to_owned()
}

/// The whole answer: status and body.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> io::Result<(u16, Value)> {
    let mut reader = BufReader::new(open(address, path, body)?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let mut length = None;
    while line.trim_end() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
    }
    let mut body = vec![0; length.ok_or_else(invalid)?];
    reader.read_exact(&mut body)?;
    let value = serde_json::from_slice(&body).map_err(|_| invalid())?;
    Ok((status.ok_or_else(invalid)?, value))
}
