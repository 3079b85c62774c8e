//! What is known of a request before its body is read.

use axum::http::{HeaderMap, header};

use crate::id::new_id;

/// Longest request id that a client may choose.
const MAX_CLIENT_ID_CHARS: usize = 128;

/// Whose words an answer is in, and its id.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    /// Whether errors have Anthropic's shape.
    pub anthropic: bool,
    /// The request's id, in every answer's header.
    pub request_id: String,
    /// The client's own name for itself.
    pub user_agent: Option<String>,
}

impl Wire {
    /// Of a request to a path in its one spelling.
    pub(crate) fn new(path: &str, headers: &HeaderMap) -> Wire {
        let chosen = ["x-request-id", "x-client-request-id"]
            .into_iter()
            .filter_map(|name| headers.get(name)?.to_str().ok())
            .find(|id| {
                (1..=MAX_CLIENT_ID_CHARS).contains(&id.len())
                    // It stands in a line of the log, where blanks end a field.
                    && id.bytes().all(|b| b.is_ascii_graphic())
            });
        let user_agent = headers.get(header::USER_AGENT);
        Wire {
            anthropic: path.starts_with("/v1/messages")
                || headers.contains_key("anthropic-version"),
            request_id: chosen.map_or_else(|| new_id("req_", 24), str::to_owned),
            user_agent: user_agent.and_then(|name| name.to_str().ok().map(str::to_owned)),
        }
    }
}

/// The one spelling of a path: with `/v1` where the API has it, without prefixes that other
/// services put in front, and without a slash at the end.
pub(crate) fn canonical_path(path: &str) -> String {
    /// What stands behind `/v1`.
    const VERSIONED: [&str; 6] = [
        "models",
        "chat",
        "completions",
        "responses",
        "messages",
        "cancel",
    ];
    // Of a base address that ends in a slash and a path that begins with one.
    let path = path.trim_end_matches('/');
    let n_slashes = path.len() - path.trim_start_matches('/').len();
    let path = &path[n_slashes.saturating_sub(1)..];
    let mut rest = path;
    for prefix in ["/anthropic", "/api"] {
        if let Some(behind) = rest.strip_prefix(prefix)
            && behind.starts_with('/')
        {
            rest = behind;
        }
    }
    for prefix in ["/v1", "/beta"] {
        if let Some(behind) = rest.strip_prefix(prefix)
            && behind.starts_with('/')
        {
            rest = behind;
        }
    }
    while rest.starts_with("//") {
        rest = &rest[1..];
    }
    let first = rest.trim_start_matches('/').split('/').next();
    match first {
        Some(first) if VERSIONED.contains(&first) => format!("/v1{rest}"),
        Some("health") => "/health".to_owned(),
        _ if path.is_empty() => "/".to_owned(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_is_one() {
        for (path, expected) in [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/chat/completions/", "/v1/chat/completions"),
            ("/beta/completions", "/v1/completions"),
            ("/anthropic/v1/messages", "/v1/messages"),
            ("/api/v1/messages/count_tokens", "/v1/messages/count_tokens"),
            ("/v1/models/a/b", "/v1/models/a/b"),
            ("/models", "/v1/models"),
            ("/v1/health", "/health"),
            ("/health", "/health"),
            ("/", "/"),
            ("", "/"),
            ("/tokenize", "/tokenize"),
            ("/v1/nothing", "/v1/nothing"),
            ("//v1/messages", "/v1/messages"),
            ("///chat/completions//", "/v1/chat/completions"),
            ("/v1//models", "/v1/models"),
            ("//health", "/health"),
            ("//", "/"),
            ("/apix/v1/models", "/apix/v1/models"),
        ] {
            assert_eq!(canonical_path(path), expected, "{path}");
        }
    }

    #[test]
    fn a_client_may_choose_a_printable_id() {
        let id = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            let value = axum::http::HeaderValue::from_bytes(value).expect("a header");
            headers.insert("x-request-id", value);
            Wire::new("/", &headers).request_id
        };
        assert_eq!(id(b"mine-1"), "mine-1");
        assert!(id(b"\xc3\xa9").starts_with("req_"));
        assert!(id(&[b'a'; 129]).starts_with("req_"));
        assert!(id(b"").starts_with("req_"));
        assert!(id(b"mine finish=stop").starts_with("req_"));
    }
}
