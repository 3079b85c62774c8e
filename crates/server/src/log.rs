//! The one line that every request leaves.

use std::fmt;
use std::time::Duration;

use crate::generation::{Endpoint, Failure, Finish, Timings, Usage};

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a reply.
    Finished(Finish),
    /// Without.
    Failed(Failure),
}

/// What is said of a request when it is over. It never holds text of the prompt or the reply.
#[derive(Debug)]
pub struct RequestLine<'a> {
    /// Its id.
    pub request_id: &'a str,
    /// Where it came in.
    pub endpoint: Endpoint,
    /// Its tokens.
    pub usage: Usage,
    /// Its time, and why what was computed was not cached.
    pub timings: &'a Timings,
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

/// Items in a second; `-` when there is nothing to divide.
fn rate(n: usize, duration: Duration) -> String {
    let rate = n as f64 / duration.as_secs_f64();
    if n == 0 || !rate.is_finite() {
        "-".to_owned()
    } else {
        format!("{rate:.1}")
    }
}

impl fmt::Display for RequestLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage {
            n_prompt,
            n_cached,
            n_generated,
            n_reasoning,
        } = self.usage;
        let t = self.timings;
        let endpoint = match self.endpoint {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
            Endpoint::Messages => "messages",
            Endpoint::Responses => "responses",
        };
        write!(
            f,
            "{} {endpoint} prompt={n_prompt} cached={n_cached} ({}) generated={n_generated} \
             reasoning={n_reasoning} replayed={}/{} queue={} prefill={} ({} t/s) decode={} \
             ({} t/s) ",
            self.request_id,
            if t.cache_source.is_empty() {
                "none"
            } else {
                t.cache_source
            },
            self.n_replayed,
            self.n_replayed + self.n_rendered,
            seconds(t.queue),
            seconds(t.prefill),
            rate(n_prompt - n_cached, t.prefill),
            seconds(t.decode),
            rate(n_generated.saturating_sub(1), t.decode),
        )?;
        match &self.ending {
            Ending::Finished(finish) => {
                let finish = match finish {
                    Finish::Stop => "stop",
                    Finish::StopString(_) => "stop_string",
                    Finish::ToolCalls => "tool_calls",
                    Finish::Length => "length",
                    Finish::ContextFull => "context_full",
                    Finish::Cancelled => "cancelled",
                };
                write!(f, "finish={finish}")?;
            }
            Ending::Failed(failure) => {
                write!(f, "failed={:?} {:?}", failure.kind, failure.message)?
            }
        }
        if !t.cache_miss.is_empty() {
            write!(f, " why={:?}", t.cache_miss)?;
        }
        Ok(())
    }
}
