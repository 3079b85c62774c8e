//! The one line that every request leaves.

use std::fmt;
use std::time::Duration;

use crate::generation::{Endpoint, Failure, FailureKind, Finish, Timings, Usage};

/// Characters of a client's name or session that are logged.
const MAX_NAME_CHARS: usize = 64;

/// Who asks, as far as the request says: fit to stand in a line of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The first product of the User-Agent header; empty when there is none.
    pub name: String,
    /// The key by which the client's requests belong together; empty when there is none.
    pub session: String,
}

impl Client {
    /// From a User-Agent header and an affinity key. Only printable ASCII is taken, up to the
    /// first blank, and 64 characters.
    pub fn new(user_agent: Option<&str>, affinity: Option<&str>) -> Client {
        let word = |text: Option<&str>| -> String {
            let text = text.unwrap_or_default().trim_start();
            let printable = text.chars().take_while(char::is_ascii_graphic);
            printable.take(MAX_NAME_CHARS).collect()
        };
        Client {
            name: word(user_agent),
            session: word(affinity),
        }
    }
}

/// The API of an endpoint, in a word.
pub(crate) fn endpoint_name(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completions => "completions",
        Endpoint::Messages => "messages",
        Endpoint::Responses => "responses",
    }
}

/// How a reply ended, in a word.
pub(crate) fn finish_name(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::StopString(_) => "stop_string",
        Finish::ToolCalls => "tool_calls",
        Finish::Length => "length",
        Finish::ContextFull => "context_full",
        Finish::Cancelled => "cancelled",
    }
}

/// Why a request has no reply, in a word.
fn kind_name(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Invalid => "invalid",
        FailureKind::Unsupported => "unsupported",
        FailureKind::UnsupportedContent => "unsupported_content",
        FailureKind::ContextOverflow { .. } => "context_overflow",
        FailureKind::Unauthorised => "unauthorised",
        FailureKind::Forbidden => "forbidden",
        FailureKind::NotFound => "not_found",
        FailureKind::Conflict => "conflict",
        FailureKind::Overloaded => "overloaded",
        FailureKind::Internal => "internal",
        FailureKind::Unavailable => "unavailable",
    }
}

/// A text as one field of a line: a JSON string of printable ASCII.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
    out
}

/// Items in a second; `None` when there is nothing to divide.
pub(crate) fn rate(n: usize, duration: Duration) -> Option<f64> {
    let rate = n as f64 / duration.as_secs_f64();
    (n > 0 && rate.is_finite()).then_some(rate)
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a reply.
    Finished(Finish),
    /// Without.
    Failed(Failure),
}

/// What is said of a request when it is over. It never holds text of the prompt or the reply.
#[derive(Clone, Debug)]
pub struct RequestLine {
    /// Its id.
    pub request_id: String,
    /// Where it came in.
    pub endpoint: Endpoint,
    /// Who asked.
    pub client: Client,
    /// Its tokens.
    pub usage: Usage,
    /// Its time, and why what was computed was not cached.
    pub timings: Timings,
    /// Assistant messages of the prompt in the model's own tokens.
    pub n_replayed: usize,
    /// Assistant messages of the prompt rendered from text.
    pub n_rendered: usize,
    /// How it ended.
    pub ending: Ending,
}

fn seconds(duration: Duration) -> String {
    format!("{:.2}s", duration.as_secs_f64())
}

fn shown(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

impl fmt::Display for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage {
            n_prompt,
            n_cached,
            n_generated,
            n_reasoning,
        } = self.usage;
        let t = &self.timings;
        write!(f, "{} {}", self.request_id, endpoint_name(self.endpoint))?;
        for (name, value) in [
            ("client", &self.client.name),
            ("session", &self.client.session),
        ] {
            if !value.is_empty() {
                write!(f, " {name}={value}")?;
            }
        }
        write!(
            f,
            " prompt={n_prompt} cached={n_cached} ({}) computed={} generated={n_generated} \
             reasoning={n_reasoning} replayed={}/{} queue={} prefill={} ({} t/s) decode={} \
             ({} t/s) ",
            if t.cache_source.is_empty() {
                "none"
            } else {
                t.cache_source
            },
            t.n_prefilled,
            self.n_replayed,
            self.n_replayed + self.n_rendered,
            seconds(t.queue),
            seconds(t.prefill),
            shown(rate(t.n_prefilled, t.prefill)),
            seconds(t.decode),
            shown(rate(n_generated.saturating_sub(1), t.decode)),
        )?;
        match &self.ending {
            Ending::Finished(finish) => {
                write!(f, "finish={}", finish_name(finish))?;
            }
            Ending::Failed(failure) => {
                let message = quoted(&failure.message);
                write!(f, "failed={} message={message}", kind_name(failure.kind))?;
            }
        }
        if !t.cache_miss.is_empty() {
            write!(f, " why={}", quoted(&t.cache_miss))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_words_and_one_quoted_field_on_the_one_line() {
        let failure = Failure {
            kind: FailureKind::ContextOverflow {
                n_prompt: 9,
                n_context: 8,
            },
            message: "too \"long\"\nreq_2 finish=stop é😀".to_owned(),
            param: None,
        };
        let line = RequestLine {
            request_id: "req_1".to_owned(),
            endpoint: Endpoint::Chat,
            client: Client::default(),
            usage: Usage::default(),
            timings: Timings::default(),
            n_replayed: 0,
            n_rendered: 0,
            ending: Ending::Failed(failure),
        };
        let line = line.to_string();
        let expected = r#"failed=context_overflow message="too \"long\"\u000areq_2 finish=stop \u00e9\ud83d\ude00""#;
        assert!(line.ends_with(expected), "{line}");
        assert!(!line.contains('\n'));
    }
}
