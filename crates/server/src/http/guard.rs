//! Who may ask: hosts, origins and keys.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::error::HttpError;
use super::options::{Cors, MAX_HEADER_BYTES, ServerOptions};
use super::page;
use crate::generation::FailureKind;

/// Who may ask, decided once for a server.
pub(crate) struct Guard {
    /// Hashes of the keys, so that comparing takes the same time for every guess.
    keys: Vec<[u8; 32]>,
    cors: Cors,
    allowed_hosts: Vec<String>,
    /// Whether only this machine can connect.
    loopback: bool,
}

impl Guard {
    pub(crate) fn new(options: &ServerOptions, loopback: bool) -> Guard {
        Guard {
            keys: options
                .api_keys
                .iter()
                .map(|key| Sha256::digest(key).into())
                .collect(),
            cors: options.cors.clone(),
            allowed_hosts: options.allowed_hosts.clone(),
            loopback,
        }
    }

    /// Whether a request may go on.
    pub(crate) fn check(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), HttpError> {
        let n_bytes: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if n_bytes > MAX_HEADER_BYTES {
            return Err(HttpError::of_http(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header_too_large",
                format!("the headers are longer than {MAX_HEADER_BYTES} bytes"),
            ));
        }
        // One that is no text names nothing that is ours.
        let host = headers
            .get(header::HOST)
            .map(|host| host.to_str().unwrap_or_default());
        // Where a key is asked for, a page that has taken over a name learns nothing.
        let is_open_to_pages = self.loopback || self.keys.is_empty();
        if is_open_to_pages && host.is_some_and(|host| !self.is_own_host(host)) {
            return Err(HttpError::new(
                FailureKind::Forbidden,
                "the Host header names neither an address nor localhost; --allowed-host admits it",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let own = origin.split_once("://").map(|(_, host)| host) == host && host.is_some();
            if !own && self.admitted_origin(origin).is_none() {
                return Err(HttpError::new(
                    FailureKind::Forbidden,
                    "web pages of this origin may not use the server; --cors-origin admits them",
                ));
            }
        }
        let is_open = method == Method::OPTIONS
            || matches!(path, "/health" | "/healthz" | "/ping")
            || page::is_part(path);
        if !self.keys.is_empty() && !is_open && !self.has_key(headers) {
            return Err(HttpError::new(
                FailureKind::Unauthorised,
                "send one of the server's API keys as `Authorization: Bearer KEY` or `x-api-key: KEY`",
            ));
        }
        Ok(())
    }

    /// Adds what a web page's browser wants to see.
    pub(crate) fn add_cors(&self, asked: &HeaderMap, response: &mut Response) {
        let origin = asked.get(header::ORIGIN).and_then(|o| o.to_str().ok());
        let Some(admitted) = origin.and_then(|origin| self.admitted_origin(origin)) else {
            return;
        };
        let headers = response.headers_mut();
        let mut put = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        put(header::ACCESS_CONTROL_ALLOW_ORIGIN, &admitted);
        put(header::VARY, "Origin");
        put(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "x-request-id, request-id, retry-after, x-ds4-cache, x-ds4-warnings",
        );
        if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            put(
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                wanted.to_str().unwrap_or_default(),
            );
        }
        if asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            put(
                header::ACCESS_CONTROL_ALLOW_METHODS,
                "GET, POST, DELETE, OPTIONS",
            );
            put(header::ACCESS_CONTROL_MAX_AGE, "86400");
        }
        if asked.contains_key("access-control-request-private-network") {
            put(
                HeaderName::from_static("access-control-allow-private-network"),
                "true",
            );
        }
    }

    /// What `Access-Control-Allow-Origin` says to an origin that may use the server.
    fn admitted_origin(&self, origin: &str) -> Option<String> {
        match &self.cors {
            Cors::Off => None,
            Cors::Any => Some("*".to_owned()),
            Cors::Origins(origins) => {
                let admits = |admitted: &String| match admitted.strip_suffix(":*") {
                    // Any port, or none.
                    Some(admitted) => origin.strip_prefix(admitted).is_some_and(is_port),
                    None => admitted == origin,
                };
                origins.iter().any(admits).then(|| origin.to_owned())
            }
        }
    }

    fn is_own_host(&self, host: &str) -> bool {
        if let Some(v6) = host.strip_prefix('[') {
            let Some((address, port)) = v6.split_once(']') else {
                return false;
            };
            return address.parse::<std::net::Ipv6Addr>().is_ok() && is_port(port);
        }
        let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
        if !is_port(port) {
            return false;
        }
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<std::net::Ipv4Addr>().is_ok()
            || self
                .allowed_hosts
                .iter()
                .any(|h| h.eq_ignore_ascii_case(name))
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        let bearer = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let own = headers.get("x-api-key").and_then(|v| v.to_str().ok());
        let is_known = |key: &str| {
            let guess: [u8; 32] = Sha256::digest(key).into();
            self.keys.contains(&guess)
        };
        bearer.is_some_and(is_known) || own.is_some_and(is_known)
    }
}

/// Whether a text is what stands behind a name: nothing, or a colon and a port.
fn is_port(text: &str) -> bool {
    match text.strip_prefix(':') {
        Some(port) => port.parse::<u16>().is_ok(),
        None => text.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(options: ServerOptions) -> impl Fn(&[(&'static str, &str)]) -> bool {
        let guard = Guard::new(&options, true);
        move |headers| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    let value = HeaderValue::from_str(value).expect("a header");
                    (HeaderName::from_static(name), value)
                })
                .collect();
            guard.check(&Method::POST, "/v1/messages", &headers).is_ok()
        }
    }

    #[test]
    fn requests_of_foreign_pages_and_for_foreign_hosts_are_refused() {
        let admits = guard(ServerOptions {
            allowed_hosts: vec!["box.example".to_owned()],
            ..ServerOptions::default()
        });
        for (headers, expected) in [
            (vec![], true),
            (vec![("host", "127.0.0.1:8000")], true),
            (vec![("host", "[::1]:8000")], true),
            (vec![("host", "LOCALHOST")], true),
            (vec![("host", "box.example:80")], true),
            (vec![("host", "evil.example")], false),
            (vec![("host", "localhost.evil.example:8000")], false),
            (vec![("host", "[::1].evil.example")], false),
            (vec![("host", "[::1]:evil.example")], false),
            (vec![("host", "[::1")], false),
            (vec![("host", "127.0.0.1:80:evil.example")], false),
            (vec![("host", "localhost:99999")], false),
            (vec![("host", "")], false),
            (
                vec![
                    ("host", "localhost:8000"),
                    ("origin", "http://localhost:8000"),
                ],
                true,
            ),
            (
                vec![
                    ("host", "localhost:8000"),
                    ("origin", "http://evil.example"),
                ],
                false,
            ),
            (vec![("origin", "null")], false),
        ] {
            assert_eq!(admits(&headers), expected, "{headers:?}");
        }
        let admits = guard(ServerOptions {
            cors: Cors::Origins(vec!["http://ui.example".to_owned()]),
            ..ServerOptions::default()
        });
        assert!(admits(&[("origin", "http://ui.example")]));
        assert!(!admits(&[("origin", "http://ui.example.evil")]));
        let admits = guard(ServerOptions {
            cors: Cors::Origins(vec!["http://localhost:*".to_owned()]),
            ..ServerOptions::default()
        });
        for (origin, expected) in [
            ("http://localhost", true),
            ("http://localhost:5173", true),
            ("http://localhost:5173.evil.example", false),
            ("http://localhost.evil.example", false),
            ("https://localhost:5173", false),
        ] {
            assert_eq!(admits(&[("origin", origin)]), expected, "{origin}");
        }
    }

    #[test]
    fn a_host_is_checked_wherever_no_key_is_asked_for_and_one_that_is_no_text_is_foreign() {
        let foreign =
            HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("evil.example"))]);
        let bytes = HeaderValue::from_bytes(b"127.0.0.1\xff").expect("a header");
        let no_text = HeaderMap::from_iter([(header::HOST, bytes)]);
        let check = |options: &ServerOptions, loopback, headers: &HeaderMap| {
            let guard = Guard::new(options, loopback);
            guard.check(&Method::GET, "/health", headers).is_ok()
        };
        let open = ServerOptions::default();
        let keyed = ServerOptions {
            api_keys: vec!["key".to_owned()],
            ..ServerOptions::default()
        };
        for headers in [&foreign, &no_text] {
            assert!(!check(&open, true, headers));
            assert!(!check(&open, false, headers));
            assert!(!check(&keyed, true, headers));
            assert!(check(&keyed, false, headers));
        }
    }

    #[test]
    fn keys_are_asked_for_when_there_are_any() {
        let admits = guard(ServerOptions {
            api_keys: vec!["one".to_owned(), "two".to_owned()],
            ..ServerOptions::default()
        });
        for (headers, expected) in [
            (vec![], false),
            (vec![("authorization", "Bearer two")], true),
            (vec![("authorization", "bearer one")], true),
            (vec![("authorization", "Bearer three")], false),
            (vec![("authorization", "one")], false),
            (vec![("x-api-key", "one")], true),
            (vec![("x-api-key", "")], false),
        ] {
            assert_eq!(admits(&headers), expected, "{headers:?}");
        }
    }
}
