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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ds4_engine::Constraint;
use ds4_text::Tokenizer;
use serde_json::{Value, json};

use crate::generation::{Call, Generation};
use crate::log::{Client, Ending, RequestLine, endpoint_name, finish_name};

/// A file of traces.
pub struct Trace {
    file: Mutex<File>,
}

impl Trace {
    /// Opens a file to append to. One that is made here can be read and written by its owner only;
    /// one that was there is left as it is, and must be so already.
    ///
    /// # Errors
    /// The file cannot be opened, is a link or no file, or others may read it.
    pub fn open(path: &Path) -> io::Result<Trace> {
        let mut options = OpenOptions::new();
        options.append(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            options.mode(0o600).custom_flags(flags.bits() as i32);
        }
        let found = std::fs::symlink_metadata(path);
        let is_new = matches!(&found, Err(e) if e.kind() == io::ErrorKind::NotFound);
        if found.is_ok_and(|found| !found.is_file()) {
            return Err(io::Error::other("it is a link or no ordinary file"));
        }
        let file = options.create_new(is_new).open(path)?;
        let opened = file.metadata()?;
        if !opened.is_file() {
            return Err(io::Error::other("it is no ordinary file"));
        }
        #[cfg(unix)]
        if std::os::unix::fs::PermissionsExt::mode(&opened.permissions()) & 0o077 != 0 {
            return Err(io::Error::other(
                "others may read or write it, and it would hold the text of every request; \
                 chmod 600 it, or name a file that is not there",
            ));
        }
        Ok(Trace {
            file: Mutex::new(file),
        })
    }

    /// Appends a line.
    pub(crate) fn write(
        &self,
        request: &RequestLine,
        record: &Record,
        tokenizer: &Tokenizer,
    ) -> io::Result<()> {
        let mut line = record.to_json(request, tokenizer).to_string();
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

/// What the line of a request that is over leaves out.
pub(crate) struct Record {
    pub(crate) generation: Arc<Generation>,
    pub(crate) prompt_tokens: Vec<u32>,
    /// What held for its tokens, as [`constraint`] writes it.
    pub(crate) constraints: Vec<Value>,
    /// The generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// Their text.
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

impl Record {
    fn to_json(&self, request: &RequestLine, tokenizer: &Tokenizer) -> Value {
        let generation = &self.generation;
        let Client { name, session } = &request.client;
        let prompt = self.prompt_tokens.iter();
        let prompt: Vec<u8> = prompt
            .flat_map(|token| tokenizer.token_bytes(*token))
            .copied()
            .collect();
        let calls = self.calls.iter().map(|call| {
            json!({
                "id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "complete": call.complete,
            })
        });
        let (finish, error) = match &request.ending {
            Ending::Finished(finish) => (Value::from(finish_name(finish)), Value::Null),
            Ending::Failed(failure) => (Value::Null, Value::from(failure.message.as_str())),
        };
        let ms = |duration: std::time::Duration| duration.as_millis() as u64;
        let timings = &request.timings;
        json!({
            "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "id": request.request_id,
            "endpoint": endpoint_name(request.endpoint),
            "client": name,
            "session": session,
            "sampling": format!("{:?}", generation.sampling),
            "prompt": String::from_utf8_lossy(&prompt),
            "prompt_tokens": self.prompt_tokens,
            "replayed": request.n_replayed,
            "rendered": request.n_rendered,
            "cache": {
                "used": generation.use_cache,
                "n_cached": request.usage.n_cached,
                "source": timings.cache_source,
                "why": timings.cache_miss,
            },
            "constraints": self.constraints,
            "output": self.text,
            "output_tokens": self.tokens,
            "calls": calls.collect::<Vec<Value>>(),
            "finish": finish,
            "error": error,
            "queue_ms": ms(timings.queue),
            "prefill_ms": ms(timings.prefill),
            "decode_ms": ms(timings.decode),
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        let found = std::fs::metadata(path).expect("a file");
        found.permissions().mode() & 0o777
    }

    #[test]
    fn what_is_there_is_not_changed_or_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        assert!(Trace::open(&at("new")).is_ok());
        assert_eq!(mode(&at("new")), 0o600);
        assert!(Trace::open(&at("new")).is_ok(), "a second time");

        std::fs::write(at("others"), "x").expect("a file");
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(at("others"), open).expect("a mode");
        assert!(Trace::open(&at("others")).is_err());
        assert_eq!(mode(&at("others")), 0o644);

        symlink(at("new"), at("link")).expect("a link");
        assert!(Trace::open(&at("link")).is_err());
        symlink(at("nothing"), at("dangling")).expect("a link");
        assert!(Trace::open(&at("dangling")).is_err());
        assert!(!at("nothing").exists());

        let fifo = at("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        if made.is_ok_and(|made| made.success()) {
            assert!(Trace::open(&fifo).is_err(), "and it does not hang");
        }
        assert!(Trace::open(folder.path()).is_err());
    }
}
