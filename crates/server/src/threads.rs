//! Conversations that clients go on with by the id of their last message, in memory and, where turns
//! outlive the process, in their log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::api::messages::{Thread, ThreadStore};
use crate::api::responses::{MemoryStore, ResponseStore as _, StoredResponse};
use crate::turns::Turns;

/// Messages of the model's that are kept in memory to go on from.
pub const MAX_THREADS: usize = 10_000;
/// Bytes of JSON of those, about; what they share counts once.
pub const MAX_THREAD_BYTES: usize = 128 << 20;

/// The conversations of a server, the oldest out first.
pub struct Threads {
    memory: Mutex<MemoryStore>,
    turns: Arc<Turns>,
}

impl Threads {
    /// None yet, and those that the log of these turns has.
    pub fn new(turns: Arc<Turns>) -> Threads {
        Threads {
            memory: Mutex::new(MemoryStore::new(MAX_THREADS, MAX_THREAD_BYTES)),
            turns,
        }
    }

    fn memory(&self) -> MutexGuard<'_, MemoryStore> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a conversation in memory, which ends in the model's message of this id.
    pub fn put(&self, thread: &Thread, id: &str, reply: Value, now_unix: u64) {
        let mut all = vec![Arc::clone(&thread.head)];
        all.extend(thread.messages.iter().cloned());
        all.push(reply.to_string().into());
        self.memory().expire(now_unix);
        self.put_all(all, id, Some(now_unix));
    }

    /// Keeps what a conversation begins with and all of its messages.
    fn put_all(&self, all: Vec<Arc<str>>, id: &str, created_at: Option<u64>) {
        self.memory().put(StoredResponse {
            input: all,
            response: json!({"id": id, "created_at": created_at}),
        });
    }

    /// Takes a conversation from the log into memory, if it is there.
    fn read(&self, id: &str) {
        let found = Thread::of_records(id, |id| self.turns.read_thread(id));
        if let Some(Thread { head, messages, .. }) = found {
            let all = std::iter::once(head).chain(messages).collect();
            self.put_all(all, id, None);
        }
    }
}

impl ThreadStore for Threads {
    fn thread(&self, id: &str) -> Option<Thread> {
        let in_memory = self.memory().response(id);
        let kept = match in_memory {
            Some(kept) => kept,
            None => {
                tokio::task::block_in_place(|| self.read(id));
                self.memory().response(id)?
            }
        };
        let (head, messages) = kept.input.split_first()?;
        Some(Thread {
            previous: None,
            head: Arc::clone(head),
            messages: messages.to_vec(),
            n_new: 0,
        })
    }
}
