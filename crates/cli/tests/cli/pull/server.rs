//! A hub on this machine that misbehaves as it is told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the server does with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// What it should.
    None,
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Falls silent after so many bytes of the body.
    Stall(usize),
    /// Answers with this status.
    Status(u16),
    /// Sends the bytes after those that were asked for, and says so.
    OtherRange,
    /// Announces a file one byte longer than it is.
    LongerFile,
    /// Announces twice the bytes that it sends.
    LongerBody,
    /// Closes the connection without an answer.
    Hang,
}

/// What the server has, and how it behaves.
pub(super) struct Behaviour {
    pub(super) content: Vec<u8>,
    /// What it calls the content.
    pub(super) etag: String,
    /// Whether the hub sends clients on to a storage.
    pub(super) redirects: bool,
    pub(super) has_ranges: bool,
    /// A token that requests to the hub must have.
    pub(super) token: Option<String>,
    /// By the number of the request, from 0.
    pub(super) fault: Box<dyn Fn(usize) -> Fault + Send>,
    /// Pause after every 4 KiB.
    pub(super) pause: Duration,
    /// The content and tag from this request on.
    pub(super) later: Option<(usize, Vec<u8>, String)>,
}

impl Behaviour {
    pub(super) fn good(content: &[u8]) -> Behaviour {
        Behaviour {
            content: content.to_vec(),
            etag: "one".to_owned(),
            redirects: true,
            has_ranges: true,
            token: None,
            fault: Box::new(|_| Fault::None),
            pause: Duration::ZERO,
            later: None,
        }
    }
}

/// The server; it ends with the process.
pub(super) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    n_requests: AtomicUsize,
    /// Paths that were asked for with a token.
    with_token: Mutex<Vec<String>>,
}

impl Server {
    pub(super) fn start(behaviour: Behaviour) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            n_requests: AtomicUsize::new(0),
            with_token: Mutex::default(),
        });
        let of_all = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&of_all);
                // A client that goes away ends its connection's thread.
                thread::spawn(move || while serve(&stream, &shared) == Some(()) {});
            }
        });
        Server { address, shared }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn n_requests(&self) -> usize {
        self.shared.n_requests.load(Ordering::SeqCst)
    }

    pub(super) fn with_token(&self) -> Vec<String> {
        self.shared.with_token.lock().expect("whole").clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().expect("whole"));
    }
}

/// One request; `None` ends the connection.
fn serve(stream: &TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let header = |name: &str| {
        lines.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let number = shared.n_requests.fetch_add(1, Ordering::SeqCst);
    let token = header("authorization");
    if token.is_some() {
        shared.with_token.lock().expect("whole").push(path.clone());
    }
    let (content, etag, redirects, has_ranges, wanted, fault, pause) = {
        let mut b = shared.behaviour.lock().expect("whole");
        if b.later.as_ref().is_some_and(|(from, ..)| number >= *from)
            && let Some((_, content, etag)) = b.later.take()
        {
            (b.content, b.etag) = (content, etag);
        }
        (
            b.content.clone(),
            b.etag.clone(),
            b.redirects,
            b.has_ranges,
            b.token.clone(),
            (b.fault)(number),
            b.pause,
        )
    };
    let mut out = stream;
    let mut answer = |status: u16, headers: &[String]| -> Option<()> {
        let mut head = format!("HTTP/1.1 {status} X\r\n");
        headers.iter().for_each(|h| head += &format!("{h}\r\n"));
        out.write_all(format!("{head}\r\n").as_bytes()).ok()
    };
    let nothing = || "content-length: 0".to_owned();
    let is_hub = path.contains("/resolve/");
    if fault == Fault::Hang {
        return None;
    }
    if let Fault::Status(status) = fault
        // Only the storage's addresses expire.
        && !(is_hub && status == 403)
    {
        return answer(status, &[nothing(), "retry-after: 0".to_owned()]);
    }
    if is_hub {
        if let Some(wanted) = wanted
            && token != Some(format!("Bearer {wanted}"))
        {
            return answer(401, &[nothing()]);
        }
        if !path.ends_with("/m.gguf") {
            return answer(404, &[nothing()]);
        }
        if redirects {
            let headers = [
                nothing(),
                // Another name of the same machine, as a storage has.
                format!(
                    "location: http://localhost:{}/store/m",
                    stream.local_addr().ok()?.port()
                ),
                format!("x-linked-size: {}", content.len()),
                format!("x-linked-etag: \"{etag}\""),
            ];
            return answer(302, &headers);
        }
    }
    let tag = match redirects {
        true => format!("etag: \"stored-{etag}\""),
        false => format!("etag: \"{etag}\""),
    };
    let range = header("range").filter(|_| has_ranges).and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(first..(last + 1).min(content.len()))
    });
    let (body, status, mut headers) = match range {
        None => (&content[..], 200, vec![tag]),
        Some(range) => {
            let (first, last) = match fault {
                Fault::OtherRange => (range.start + 1, range.end),
                _ => (range.start, range.end - 1),
            };
            let n = content.len() + usize::from(fault == Fault::LongerFile);
            let said = format!("content-range: bytes {first}-{last}/{n}");
            (&content[range], 206, vec![tag, said])
        }
    };
    let n_said = body.len() * if fault == Fault::LongerBody { 2 } else { 1 };
    headers.push(format!("content-length: {n_said}"));
    answer(status, &headers)?;
    let n_sent = match fault {
        Fault::Cut(n) | Fault::Stall(n) => n.min(body.len()),
        _ => body.len(),
    };
    let mut out = stream;
    for chunk in body[..n_sent].chunks(4096) {
        out.write_all(chunk).ok()?;
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    match fault {
        Fault::Cut(_) | Fault::LongerBody => None,
        Fault::Stall(_) => {
            thread::sleep(Duration::from_secs(4));
            None
        }
        _ => Some(()),
    }
}
