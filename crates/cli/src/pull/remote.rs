//! The server's side: where a file is, what it is, and a range of its bytes.

use std::io::Read;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::anyhow;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::{Failure, Identity, Order};
use crate::sums::is_sha256;

/// Redirections that are followed before the chain counts as endless.
const MAX_REDIRECTS: usize = 10;
/// The longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A file on a server.
pub(crate) struct Remote {
    agent: Agent,
    order: Order,
    place: Mutex<Option<Place>>,
}

/// Where the last chain of redirections ended; it may expire.
#[derive(Clone)]
struct Place {
    uri: String,
    /// What the storage there calls the content.
    etag: Option<String>,
}

/// The end of a chain of redirections.
struct Answer {
    response: Response<Body>,
    uri: String,
    linked_bytes: Option<u64>,
    linked_etag: Option<String>,
}

impl Remote {
    pub(crate) fn new(order: &Order) -> Remote {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections_per_host(order.n_connections)
            .timeout_connect(Some(order.stall))
            .timeout_recv_response(Some(order.stall))
            .timeout_per_read(Some(order.stall))
            .timeout_per_write(Some(order.stall))
            .user_agent(concat!("ds4/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Remote {
            agent,
            order: order.clone(),
            place: Mutex::new(None),
        }
    }

    /// Asks what the file is.
    ///
    /// # Errors
    /// The server does not say, or refuses.
    pub(crate) fn identify(&self) -> Result<Identity, Failure> {
        let answer = self.follow(&self.address(), Some(0..1))?;
        let status = answer.response.status().as_u16();
        let headers = answer.response.headers();
        let (n_bytes, has_ranges) = match status {
            206 => {
                let (range, n_bytes) = content_range(headers).ok_or_else(|| {
                    again("the server sends part of the file and does not say which")
                })?;
                if range != (0..1) {
                    return Err(again("the server sends another part than was asked for"));
                }
                (n_bytes, true)
            }
            // A file without bytes has no first byte to ask for.
            416 => (content_range_of_none(headers).unwrap_or(0), true),
            _ => {
                let n_bytes = header(headers, "content-length").and_then(|n| n.parse().ok());
                let n_bytes =
                    n_bytes.ok_or_else(|| again("the server does not say how long the file is"))?;
                (n_bytes, false)
            }
        };
        if let Some(linked) = answer.linked_bytes
            && linked != n_bytes
        {
            return Err(again(&format!(
                "the hub says that the file has {linked} bytes, and its storage {n_bytes}"
            )));
        }
        let etag = answer
            .linked_etag
            .or_else(|| header(headers, "etag").map(|tag| bare(tag).to_owned()))
            .unwrap_or_default();
        let sha256 = is_sha256(&etag).then(|| etag.to_lowercase());
        self.set_place(Some(Place {
            etag: header(headers, "etag").map(str::to_owned),
            uri: answer.uri,
        }));
        Ok(Identity {
            n_bytes,
            etag,
            sha256,
            has_ranges,
        })
    }

    /// The bytes of a range of the file that `identity` is of; a whole file where the server has
    /// no ranges.
    ///
    /// # Errors
    /// The server fails, refuses, or has another file.
    pub(crate) fn open(
        &self,
        range: Range<u64>,
        identity: &Identity,
    ) -> Result<impl Read + use<>, Failure> {
        let place = match self.place() {
            Some(place) => place,
            None => {
                let now = self.identify()?;
                if !now.same(identity) {
                    return Err(Failure::Changed);
                }
                self.place()
                    .ok_or_else(|| again("the place of the file expired"))?
            }
        };
        let wanted = identity.has_ranges.then(|| range.clone());
        let answer = self.follow(&place.uri, wanted).map_err(|failure| {
            // The place may have expired: the next request asks the hub for it.
            self.set_place(None);
            match failure {
                Failure::Fatal(why) => Failure::Again(crate::error::one_line(&why), None),
                other => other,
            }
        })?;
        let headers = answer.response.headers();
        let status = answer.response.status().as_u16();
        if let Some(linked) = &answer.linked_etag
            && *linked != identity.etag
        {
            return Err(Failure::Changed);
        }
        match (status, identity.has_ranges) {
            (206, true) => {
                let (found, n_bytes) =
                    content_range(headers).ok_or_else(|| again("which bytes come is not said"))?;
                if n_bytes != identity.n_bytes {
                    return Err(Failure::Changed);
                }
                if found.start != range.start || found.end > range.end {
                    return Err(again("the server sends another part than was asked for"));
                }
            }
            (200, false) => {
                let n_bytes = header(headers, "content-length").and_then(|n| n.parse::<u64>().ok());
                if n_bytes.is_some_and(|n| n != identity.n_bytes) {
                    return Err(Failure::Changed);
                }
            }
            (200, true) => {
                return Err(again(
                    "the server sends the whole file where a part was asked for",
                ));
            }
            (416, _) => return Err(Failure::Changed),
            _ => return Err(again(&format!("the server answers with status {status}"))),
        }
        if header(headers, "etag") != place.etag.as_deref() {
            // The hub knows whether this is another content or another copy.
            self.set_place(None);
            return Err(again("the storage has another copy of the file"));
        }
        Ok(answer.response.into_body().into_reader())
    }

    fn place(&self) -> Option<Place> {
        // A thread that failed while holding it left a whole value.
        self.place.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn set_place(&self, place: Option<Place>) {
        *self.place.lock().unwrap_or_else(|e| e.into_inner()) = place;
    }

    /// Where the hub answers for the file.
    fn address(&self) -> String {
        let order = &self.order;
        format!(
            "{}/{}/resolve/{}/{}",
            order.endpoint,
            escaped(&order.repository),
            escaped(&order.revision),
            escaped(&order.file)
        )
    }

    /// Sends a request and follows redirections by hand: the hub's answers carry what its storage
    /// does not know, and the token is for the hub alone.
    fn follow(&self, start: &str, range: Option<Range<u64>>) -> Result<Answer, Failure> {
        let mut uri = start.to_owned();
        let mut linked_bytes = None;
        let mut linked_etag = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&uri).header("accept-encoding", "identity");
            if let Some(range) = &range {
                let last = range.end.max(range.start + 1) - 1;
                request = request.header("range", format!("bytes={}-{last}", range.start));
            }
            if let Some(token) = &self.order.token
                && origin(&uri) == origin(&self.order.endpoint)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| refused_or_again(&uri, e))?;
            let headers = response.headers();
            if let Some(n) = header(headers, "x-linked-size").and_then(|n| n.parse().ok()) {
                linked_bytes = Some(n);
            }
            if let Some(tag) = header(headers, "x-linked-etag") {
                linked_etag = Some(bare(tag).to_owned());
            }
            let status = response.status().as_u16();
            match status {
                200 | 206 | 416 => {
                    return Ok(Answer {
                        response,
                        uri,
                        linked_bytes,
                        linked_etag,
                    });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let to = header(headers, "location")
                        .and_then(|to| joined(&uri, to))
                        .ok_or_else(|| again("the server redirects to nowhere"))?;
                    if uri.starts_with("https:") && !to.starts_with("https:") {
                        return Err(Failure::Fatal(anyhow!(
                            "{} redirects to {}, which is not encrypted",
                            origin(&uri),
                            origin(&to)
                        )));
                    }
                    uri = to;
                }
                _ => return Err(self.refusal(status, headers, &uri)),
            }
        }
        Err(Failure::Fatal(anyhow!(
            "{} redirects more than {MAX_REDIRECTS} times",
            origin(start)
        )))
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, uri: &str) -> Failure {
        let order = &self.order;
        let host = origin(uri);
        match status {
            // Addresses of the storage expire; the hub gives another.
            401..=410 if host != origin(&order.endpoint) => {
                Failure::Again(format!("{host} answers with status {status}"), None)
            }
            401 | 403 => Failure::Fatal(if order.token.is_some() {
                anyhow!(
                    "{host} refuses {}/{} (status {status}): the token of HF_TOKEN does not give \
                     access to it",
                    order.repository,
                    order.file
                )
            } else {
                anyhow!(
                    "{host} refuses {}/{} (status {status}): set HF_TOKEN if it needs a token",
                    order.repository,
                    order.file
                )
            }),
            404 | 410 => Failure::Fatal(anyhow!(
                "{host} has no file {} in {} at {}: check the name; `ds4 pull` lists the published ones",
                order.file,
                order.repository,
                order.revision
            )),
            408 | 425 | 429 | 500..=599 => Failure::Again(
                format!("{host} answers with status {status}"),
                header(headers, "retry-after")
                    .and_then(|s| s.parse().ok())
                    .map(|s| Duration::from_secs(s).min(MAX_WAIT)),
            ),
            _ => Failure::Fatal(anyhow!("{host} answers with status {status}")),
        }
    }
}

fn again(why: &str) -> Failure {
    Failure::Again(why.to_owned(), None)
}

/// What an error of the client means. An address that cannot be one stays so; everything else may
/// pass.
fn refused_or_again(uri: &str, error: ureq::Error) -> Failure {
    let host = origin(uri);
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Failure::Fatal(anyhow!("{uri} is not an address to ask: {error}"))
        }
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
            Failure::Fatal(anyhow!("no trusted connection to {host}: {error}"))
        }
        other => Failure::Again(format!("{host}: {other}"), None),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An entity tag without its quotes and its mark of weakness.
fn bare(tag: &str) -> &str {
    tag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Range and length of `bytes A-B/N`.
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let (range, n_bytes) = header(headers, "content-range")?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let n_bytes = n_bytes.parse().ok()?;
    (first <= last && last < n_bytes).then(|| (first..last + 1, n_bytes))
}

/// The length of `bytes */N`.
fn content_range_of_none(headers: &HeaderMap) -> Option<u64> {
    let length = header(headers, "content-range")?.strip_prefix("bytes */")?;
    length.parse().ok()
}

/// Scheme and host with port.
fn origin(uri: &str) -> String {
    match uri.parse::<Uri>() {
        Ok(parsed) => format!(
            "{}://{}",
            parsed.scheme_str().unwrap_or(""),
            parsed.authority().map_or("", |a| a.as_str())
        ),
        Err(_) => uri.to_owned(),
    }
}

/// The address that `to` means on a page at `from`.
fn joined(from: &str, to: &str) -> Option<String> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return Some(to.to_owned());
    }
    let (scheme, _) = from.split_once("://")?;
    if let Some(rest) = to.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if to.starts_with('/') {
        return Some(format!("{}{to}", origin(from)));
    }
    let path = from.split(['?', '#']).next()?;
    let (folder, _) = path.rsplit_once('/')?;
    Some(format!("{folder}/{to}"))
}

/// A path with what does not belong into an address in percent signs.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_relative_to_the_page_that_redirects() {
        for (from, to, expected) in [
            ("http://a:1/b/c?d", "https://e/f", Some("https://e/f")),
            ("http://a:1/b/c?d", "/f", Some("http://a:1/f")),
            ("http://a:1/b/c?d=/x", "f", Some("http://a:1/b/f")),
            ("https://a/b", "//e/f", Some("https://e/f")),
        ] {
            assert_eq!(joined(from, to).as_deref(), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_range_that_contradicts_itself_is_none() {
        let range = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 2-4/10"), Some((2..5, 10)));
        for wrong in [
            "bytes 4-2/10",
            "bytes 2-10/10",
            "bytes */10",
            "2-4/10",
            "bytes 2-4/*",
        ] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }
}
