//! HTTP as a client speaks it that may hang up at any moment.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest silence of a server that is alive: streams say something every five seconds.
pub(crate) const STREAM_SILENCE: Duration = Duration::from_secs(60);

/// A connection.
pub(crate) struct Wire {
    reader: BufReader<TcpStream>,
    host: String,
}

/// The head of an answer.
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) has_retry_after: bool,
    length: Option<usize>,
    chunked: bool,
}

impl Wire {
    pub(crate) fn open(address: SocketAddr, silence: Duration) -> io::Result<Wire> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        Ok(Wire {
            reader: BufReader::new(stream),
            host: address.to_string(),
        })
    }

    /// Writes bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends a request whole.
    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let host = &self.host;
        let length = body.len();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n{headers}\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.write(&request)
    }

    /// Reads the head of the answer.
    pub(crate) fn head(&mut self) -> io::Result<Head> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let mut head = Head {
            status: status.ok_or_else(invalid)?,
            has_retry_after: false,
            length: None,
            chunked: false,
        };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(head);
            }
            let (name, value) = line.split_once(':').ok_or_else(invalid)?;
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.trim().parse().ok(),
                "transfer-encoding" => head.chunked = value.trim() == "chunked",
                "retry-after" => head.has_retry_after = true,
                _ => {}
            }
        }
    }

    /// The next piece of the body of an answer, `None` at its end.
    pub(crate) fn piece(&mut self, head: &mut Head) -> io::Result<Option<Vec<u8>>> {
        if !head.chunked {
            let Some(length) = head.length.take().filter(|n| *n > 0) else {
                return Ok(None);
            };
            let mut bytes = vec![0; length];
            self.reader.read_exact(&mut bytes)?;
            return Ok(Some(bytes));
        }
        let line = self.line()?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not a chunk");
        let length = usize::from_str_radix(&line, 16).map_err(|_| invalid())?;
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        if !self.line()?.is_empty() {
            return Err(invalid());
        }
        Ok((length > 0).then_some(bytes))
    }

    /// The whole body of an answer.
    pub(crate) fn body(&mut self, head: &mut Head) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece(head)? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// One answer to a GET on a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut wire = Wire::open(address, Duration::from_secs(30))?;
    wire.send("GET", path, "connection: close\r\n", b"")?;
    let mut head = wire.head()?;
    let body = wire.body(&mut head)?;
    Ok((head.status, body))
}
