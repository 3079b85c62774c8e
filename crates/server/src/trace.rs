//! What bug reports need: everything of a request, its text included.
//!
//! One JSON object per line, written when a request is over. The ordinary log never holds text,
//! and this file is for its owner's eyes alone.
//!
//! | member | value |
//! |---|---|
//! | `time`, `id`, `endpoint`, `client`, `session` | when it ended, and who asked what |
//! | `prompt`, `prompt_tokens` | the text and ids that the engine got; bytes in `cache.why` count in this text |
//! | `replayed`, `rendered` | replies in the prompt in the model's own tokens, and from text |
//! | `cache` | `used`, `n_cached`, `source`, `why` |
//! | `sampling`, `constraints` | how tokens were chosen; a constraint holds from the token `at` on |
//! | `output`, `output_tokens`, `calls` | what the model wrote, and the calls read from it |
//! | `finish`, `error` | how it ended; one of them is null |
//! | `queue_ms`, `prefill_ms`, `decode_ms` | where the time went |

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ds4_engine::Constraint;
use serde_json::{Value, json};

use crate::generation::{Call, Timings, Usage};
use crate::log::{Client, Ending, endpoint_name, finish_name};
use crate::worker::Job;

/// A file of traces.
pub struct Trace {
    file: Mutex<File>,
}

impl Trace {
    /// Opens a file to append to, readable and writable by its owner only.
    ///
    /// # Errors
    /// The file cannot be opened, or its mode cannot be set.
    pub fn open(path: &Path) -> io::Result<Trace> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        // A file that was there has the mode it had.
        #[cfg(unix)]
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Trace {
            file: Mutex::new(file),
        })
    }

    /// Appends a line.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let mut line = record.to_json().to_string();
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())
    }
}

/// A constraint as it was set: behind how many generated tokens, and what it was.
pub(crate) fn constraint(n_generated: usize, constraint: &Constraint) -> Value {
    let allowed = constraint.allowed.as_ref();
    json!({
        "at": n_generated,
        "greedy": constraint.greedy,
        "forbidden": constraint.forbidden,
        "n_allowed": allowed.map(|set| set.len()),
    })
}

/// A request that is over.
pub(crate) struct Record<'a> {
    pub(crate) job: &'a Job,
    /// The prompt's tokens as text.
    pub(crate) prompt: String,
    pub(crate) usage: Usage,
    pub(crate) timings: &'a Timings,
    /// What held for its tokens, as [`constraint`] writes it.
    pub(crate) constraints: &'a [Value],
    /// The generated tokens.
    pub(crate) tokens: &'a [u32],
    /// Their text.
    pub(crate) text: &'a str,
    pub(crate) calls: &'a [Call],
    pub(crate) ending: &'a Ending,
}

impl Record<'_> {
    fn to_json(&self) -> Value {
        let generation = &self.job.generation;
        let Client { name, session } = &self.job.client;
        let calls = self.calls.iter().map(|call| {
            json!({
                "id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "complete": call.complete,
            })
        });
        let (finish, error) = match self.ending {
            Ending::Finished(finish) => (Value::from(finish_name(finish)), Value::Null),
            Ending::Failed(failure) => (Value::Null, Value::from(failure.message.as_str())),
        };
        let ms = |duration: std::time::Duration| duration.as_millis() as u64;
        json!({
            "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "id": self.job.request_id,
            "endpoint": endpoint_name(generation.endpoint),
            "client": name,
            "session": session,
            "sampling": format!("{:?}", generation.sampling),
            "prompt": self.prompt,
            "prompt_tokens": self.job.prompt.tokens,
            "replayed": self.job.prompt.n_replayed,
            "rendered": self.job.prompt.n_rendered,
            "cache": {
                "used": generation.use_cache,
                "n_cached": self.usage.n_cached,
                "source": self.timings.cache_source,
                "why": self.timings.cache_miss,
            },
            "constraints": self.constraints,
            "output": self.text,
            "output_tokens": self.tokens,
            "calls": calls.collect::<Vec<Value>>(),
            "finish": finish,
            "error": error,
            "queue_ms": ms(self.timings.queue),
            "prefill_ms": ms(self.timings.prefill),
            "decode_ms": ms(self.timings.decode),
        })
    }
}
