//! What the model wrote, token by token, for when a client sends it back.
//!
//! A client returns a turn as text: with its JSON re-spaced, its keys in another order, its
//! reasoning left out. Rendering that text gives other tokens than the model chose, and everything
//! behind them would be computed again. A turn is therefore found by the ids of its calls, or by
//! the prompt it answered and its content, and its own tokens take the place of the text. When the
//! client changed anything the text stands.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ds4_engine::store::{TurnLog, TurnLogError};
use ds4_text::{Message, json};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::generation::Call;
use crate::id::without_prefix;

/// Call ids remembered unless said otherwise.
pub const DEFAULT_MAX_CALL_IDS: usize = 100_000;
/// Bytes of turns remembered unless said otherwise.
pub const DEFAULT_MAX_BYTES: usize = 512 << 20;

/// What the turn log calls a turn of this module.
const RECORD_KIND: u8 = 1;
/// What it calls a message that a client may go on from by its id.
const THREAD_KIND: u8 = 2;

/// Names a prompt's text.
pub type PromptKey = [u8; 32];

/// The key of a whole text.
pub fn prompt_key(text: &str) -> PromptKey {
    Sha256::digest(text).into()
}

/// Keys of growing prefixes of one text.
#[derive(Clone, Default)]
pub struct PrefixKeys {
    hash: Sha256,
}

impl PrefixKeys {
    /// Appends to the prefix and gives its key.
    pub fn extend(&mut self, text: &str) -> PromptKey {
        self.hash.update(text);
        self.hash.clone().finalize().into()
    }
}

/// One turn as the model wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The text it answered, up to and including the generation prompt.
    pub prompt: PromptKey,
    /// Whether that text ended in `<think>`.
    pub thinking: bool,
    /// Its tokens, the end-of-sentence token left out.
    pub tokens: Vec<u32>,
    /// Its reasoning, as sent.
    pub reasoning: String,
    /// Its content, as sent.
    pub content: String,
    /// Its calls, as sent.
    pub calls: Vec<Call>,
}

impl Turn {
    fn n_bytes(&self) -> usize {
        let calls: usize = self
            .calls
            .iter()
            .map(|c| c.id.len() + c.name.len() + c.arguments.len())
            .sum();
        std::mem::size_of::<Turn>()
            + self.tokens.len() * 4
            + self.reasoning.len()
            + self.content.len()
            + calls
    }

    /// The keys by which it is found, in memory and in a log.
    fn keys(&self) -> Vec<String> {
        if self.calls.is_empty() {
            vec![content_key(self.prompt, &self.content)]
        } else {
            let ids = self.calls.iter().map(|call| call_key(&call.id));
            ids.collect()
        }
    }

    /// The payload of its record: a JSON object.
    fn to_record(&self) -> Vec<u8> {
        let calls: Vec<Value> = self
            .calls
            .iter()
            .map(|c| json!([c.id, c.name, c.arguments, c.complete]))
            .collect();
        json!({
            "prompt": self.prompt,
            "thinking": self.thinking,
            "tokens": self.tokens,
            "reasoning": self.reasoning,
            "content": self.content,
            "calls": calls,
        })
        .to_string()
        .into_bytes()
    }

    /// Reads a record; `None` when it is not one of ours.
    fn of_record(payload: &[u8]) -> Option<Turn> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let numbers = |name: &str| -> Option<Vec<u32>> {
            value[name].as_array()?.iter().map(number).collect()
        };
        let text = |value: &Value| Some(value.as_str()?.to_owned());
        let prompt: Option<Vec<u8>> = numbers("prompt")?
            .into_iter()
            .map(|byte| u8::try_from(byte).ok())
            .collect();
        let call = |value: &Value| {
            Some(Call {
                id: text(&value[0])?,
                name: text(&value[1])?,
                arguments: text(&value[2])?,
                complete: value[3].as_bool()?,
            })
        };
        Some(Turn {
            prompt: prompt?.try_into().ok()?,
            thinking: value["thinking"].as_bool()?,
            tokens: numbers("tokens")?,
            reasoning: text(&value["reasoning"])?,
            content: text(&value["content"])?,
            calls: value["calls"]
                .as_array()?
                .iter()
                .map(call)
                .collect::<Option<_>>()?,
        })
    }

    /// Whether a message says what this turn said. Reasoning may be missing: it is restored.
    fn is_said_by(&self, message: &Message) -> bool {
        let reasoning = message.reasoning.as_deref().unwrap_or_default().trim();
        (reasoning.is_empty() || reasoning == self.reasoning.trim())
            && message.content.trim_end() == self.content.trim_end()
            && message.tool_calls.len() == self.calls.len()
            && message
                .tool_calls
                .iter()
                .zip(&self.calls)
                .all(|(a, b)| a.name == b.name && same_arguments(&a.arguments, &b.arguments))
    }
}

/// Ids are of a client's making, keys have a longest length.
fn thread_key(id: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(id).into();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("thread {hex}")
}

fn call_key(id: &str) -> String {
    format!("call {}", without_prefix(id))
}

fn content_key(prompt: PromptKey, content: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(prompt);
    hash.update(content.trim_end());
    let digest: [u8; 32] = hash.finalize().into();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("answer {hex}")
}

/// Whether two argument texts are the same JSON value, however they are written.
fn same_arguments(a: &str, b: &str) -> bool {
    a == b
        || match (json::parse(a), json::parse(b)) {
            (Ok(a), Ok(b)) => same_value(&a, &b),
            _ => false,
        }
}

fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| same_value(a, b)))
        }
        (a, b) => a == b,
    }
}

struct Record {
    turn: Arc<Turn>,
    last_used: u64,
}

/// The turns of a server, least recently used out first. What is in memory is never locked while a
/// file is read or written.
pub struct Turns {
    memory: Mutex<Memory>,
    /// Where turns outlive the process.
    log: Option<Mutex<TurnLog>>,
    /// What went wrong with it, for the server's log.
    problems: Mutex<Vec<String>>,
}

impl Turns {
    /// Remembers so much; no call ids is nothing at all.
    pub fn new(max_call_ids: usize, max_bytes: usize) -> Turns {
        Turns {
            memory: Mutex::new(Memory {
                max_call_ids,
                max_bytes,
                records: HashMap::new(),
                by_key: HashMap::new(),
                by_use: BTreeMap::new(),
                n_bytes: 0,
                clock: 0,
            }),
            log: None,
            problems: Mutex::new(Vec::new()),
        }
    }

    /// Keeps turns in a log too, and looks there for those that are not in memory.
    pub fn with_log(mut self, log: TurnLog) -> Turns {
        self.log = Some(Mutex::new(log));
        self
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong with the log; each is told once.
    pub fn take_problems(&self) -> Vec<String> {
        let problems = self.problems.lock();
        std::mem::take(&mut *problems.unwrap_or_else(PoisonError::into_inner))
    }

    fn note_problem(&self, error: &TurnLogError) {
        let problems = self.problems.lock();
        let mut problems = problems.unwrap_or_else(PoisonError::into_inner);
        problems.push(format!("the turn log: {error}"));
    }

    /// Number of turns remembered.
    pub fn len(&self) -> usize {
        self.memory().records.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a call of this id, with any prefix, is remembered.
    pub fn knows_call(&self, id: &str) -> bool {
        self.memory().by_key.contains_key(&call_key(id))
    }

    /// Remembers a turn. It outlives the process once it is [written](Turns::write).
    pub fn insert(&self, turn: Turn) -> Arc<Turn> {
        let turn = Arc::new(turn);
        self.memory().remember(Arc::clone(&turn));
        turn
    }

    /// Appends a turn to the log, if there is one.
    pub fn write(&self, turn: &Turn) {
        let remembers = self.memory().max_call_ids > 0;
        let Some(log) = self.log.as_ref().filter(|_| remembers) else {
            return;
        };
        let keys = turn.keys();
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        let record = turn.to_record();
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = log.append(RECORD_KIND, &keys, &record);
        drop(log);
        if let Err(error) = appended {
            self.note_problem(&error);
        }
    }

    /// Appends a message that a client may go on from to the log, if there is one.
    pub(crate) fn write_thread(&self, id: &str, record: &Value) {
        let remembers = self.memory().max_call_ids > 0;
        let Some(log) = self.log.as_ref().filter(|_| remembers) else {
            return;
        };
        let (key, record) = (thread_key(id), record.to_string());
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = log.append(THREAD_KIND, &[key.as_bytes()], record.as_bytes());
        drop(log);
        if let Err(error) = appended {
            self.note_problem(&error);
        }
    }

    /// The record of such a message, if the log has it.
    pub(crate) fn read_thread(&self, id: &str) -> Option<Value> {
        let mut log = self.log.as_ref()?.lock();
        let log = log.as_mut().unwrap_or_else(|poisoned| poisoned.get_mut());
        match log.get(thread_key(id).as_bytes()) {
            Ok(Some(record)) if record.kind == THREAD_KIND => {
                serde_json::from_slice(&record.payload).ok()
            }
            Ok(_) => None,
            Err(error) => {
                self.note_problem(&error);
                None
            }
        }
    }

    /// Takes the turn of a key from the log into memory, if it is only there.
    fn read(&self, key: &str) {
        let Some(log) = &self.log else { return };
        if self.memory().by_key.contains_key(key) {
            return;
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let found = log.get(key.as_bytes());
        drop(log);
        match found {
            Ok(Some(record)) if record.kind == RECORD_KIND => {
                if let Some(turn) = Turn::of_record(&record.payload) {
                    self.memory().remember(Arc::new(turn));
                }
            }
            Ok(_) => {}
            Err(error) => self.note_problem(&error),
        }
    }

    /// The turn that a message repeats, if it is remembered and unchanged. `prompt` is the key of
    /// the text before the message, and `thinking` says whether that text ends in `<think>`.
    pub fn find(&self, message: &Message, prompt: PromptKey, thinking: bool) -> Option<Arc<Turn>> {
        let key = match message.tool_calls.first() {
            Some(first) => call_key(&first.id),
            None => content_key(prompt, &message.content),
        };
        self.read(&key);
        self.memory().find(message, &key, thinking)
    }
}

struct Memory {
    max_call_ids: usize,
    max_bytes: usize,
    records: HashMap<u64, Record>,
    by_key: HashMap<String, u64>,
    by_use: BTreeMap<u64, u64>,
    n_bytes: usize,
    /// Counts records and uses.
    clock: u64,
}

impl Memory {
    fn remember(&mut self, turn: Arc<Turn>) {
        if self.max_call_ids == 0 {
            return;
        }
        self.clock += 1;
        let number = self.clock;
        for key in turn.keys() {
            // The same answer to the same prompt, given again: the newer one is the one in a slot.
            if let Some(old) = self.by_key.insert(key, number) {
                self.forget(old);
            }
        }
        self.n_bytes += turn.n_bytes();
        self.by_use.insert(number, number);
        let last_used = number;
        self.records.insert(number, Record { turn, last_used });
        while self.by_key.len() > self.max_call_ids || self.n_bytes > self.max_bytes {
            let Some((_, &oldest)) = self.by_use.first_key_value() else {
                break;
            };
            self.forget(oldest);
        }
    }

    fn find(&mut self, message: &Message, key: &str, thinking: bool) -> Option<Arc<Turn>> {
        let number = *self.by_key.get(key)?;
        let record = self.records.get_mut(&number)?;
        let pairs = message.tool_calls.iter().zip(&record.turn.calls);
        let ids_agree = message.tool_calls.len() == record.turn.calls.len()
            && pairs
                .into_iter()
                .all(|(a, b)| without_prefix(&a.id) == without_prefix(&b.id));
        if !ids_agree || record.turn.thinking != thinking || !record.turn.is_said_by(message) {
            return None;
        }
        self.clock += 1;
        self.by_use.remove(&record.last_used);
        record.last_used = self.clock;
        self.by_use.insert(self.clock, number);
        Some(Arc::clone(&record.turn))
    }

    fn forget(&mut self, number: u64) {
        let Some(Record { turn, last_used }) = self.records.remove(&number) else {
            return;
        };
        self.by_use.remove(&last_used);
        self.n_bytes -= turn.n_bytes();
        for key in turn.keys() {
            if self.by_key.get(&key) == Some(&number) {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_engine::store::TurnLogOptions;
    use ds4_text::ToolCall;

    fn turn(content: &str, calls: &[(&str, &str)]) -> Turn {
        Turn {
            prompt: prompt_key("p"),
            thinking: true,
            tokens: vec![1, 2, 3],
            reasoning: "because".to_owned(),
            content: content.to_owned(),
            calls: calls
                .iter()
                .map(|(id, arguments)| Call {
                    id: format!("call_{id}"),
                    name: "f".to_owned(),
                    arguments: (*arguments).to_owned(),
                    complete: true,
                })
                .collect(),
        }
    }

    fn message(content: &str, calls: &[(&str, &str)]) -> Message {
        let mut message = Message::assistant(content);
        message.tool_calls = calls
            .iter()
            .map(|(id, arguments)| ToolCall {
                id: format!("toolu_{id}"),
                name: "f".to_owned(),
                arguments: (*arguments).to_owned(),
            })
            .collect();
        message
    }

    #[test]
    fn a_turn_is_found_by_its_calls_however_their_json_is_written() {
        let turns = Turns::new(100, 1 << 20);
        let written = r#"{"b": 1.0, "a": ["\u00e9", {"x": true}]}"#;
        turns.insert(turn("", &[("1", written), ("2", "{}")]));
        for (calls, content, found) in [
            (vec![("1", written), ("2", "{}")], "", true),
            (
                vec![("1", r#"{"a":["é",{"x":true}],"b":1}"#), ("2", "{ }")],
                "\n\n",
                true,
            ),
            (
                vec![("1", r#"{"a":["e",{"x":true}],"b":1}"#), ("2", "{}")],
                "",
                false,
            ),
            (vec![("1", written)], "", false),
            (vec![("2", "{}"), ("1", written)], "", false),
            (vec![("1", written), ("2", "{}")], "more", false),
            (vec![("3", written), ("2", "{}")], "", false),
        ] {
            let hit = turns.find(&message(content, &calls), prompt_key("another"), true);
            assert_eq!(hit.is_some(), found, "{calls:?} {content:?}");
        }
        let calls = [("1", written), ("2", "{}")];
        assert!(
            turns
                .find(&message("", &calls), prompt_key("p"), false)
                .is_none(),
            "a turn that thought does not stand where no thinking is written"
        );
    }

    #[test]
    fn a_turn_without_calls_is_found_by_prompt_and_content() {
        let turns = Turns::new(100, 1 << 20);
        turns.insert(turn("answer", &[]));
        let mut said = message("answer\n", &[]);
        assert!(turns.find(&said, prompt_key("p"), true).is_some());
        assert!(turns.find(&said, prompt_key("q"), true).is_none());
        said.reasoning = Some(" because ".to_owned());
        assert!(turns.find(&said, prompt_key("p"), true).is_some());
        said.reasoning = Some("for another reason".to_owned());
        assert!(turns.find(&said, prompt_key("p"), true).is_none());
    }

    #[test]
    fn the_least_recently_used_turn_goes_first() {
        let turns = Turns::new(3, 1 << 20);
        for id in ["1", "2", "3"] {
            turns.insert(turn("", &[(id, "{}")]));
        }
        let find = |turns: &Turns, id| {
            turns
                .find(&message("", &[(id, "{}")]), prompt_key("p"), true)
                .is_some()
        };
        assert!(find(&turns, "1"));
        turns.insert(turn("", &[("4", "{}")]));
        assert_eq!(
            ["1", "2", "3", "4"].map(|id| find(&turns, id)),
            [true, false, true, true]
        );
        let small = Turns::new(100, 2 * turn("x", &[]).n_bytes());
        for content in ["x", "y", "z"] {
            small.insert(turn(content, &[]));
        }
        assert_eq!(small.len(), 2, "bytes are limited");
        let none = Turns::new(0, 1 << 20);
        none.insert(turn("", &[("1", "{}")]));
        assert!(none.is_empty());
    }

    #[test]
    fn turns_outlive_the_process_in_a_log() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("turns.log");
        let open = || {
            let log = TurnLog::open(&path, TurnLogOptions::default()).expect("a log");
            Turns::new(100, 1 << 20).with_log(log)
        };
        let turns = open();
        let called = turn("said", &[("1", r#"{"x": "é"}"#), ("2", "{}")]);
        for turn in [called.clone(), turn("answer", &[])] {
            turns.write(&turns.insert(turn));
        }
        drop(turns);
        let turns = open();
        let calls = [("1", r#"{"x":"é"}"#), ("2", "{}")];
        let found = turns.find(&message("said", &calls), prompt_key("x"), true);
        assert_eq!(found.as_deref(), Some(&called));
        let found = turns.find(&message("answer", &[]), prompt_key("p"), true);
        assert_eq!(found.as_deref(), Some(&turn("answer", &[])));
        assert!(
            turns
                .find(&message("other", &[]), prompt_key("p"), true)
                .is_none()
        );
        assert!(turns.take_problems().is_empty());
    }

    #[test]
    fn prefix_keys_are_the_keys_of_the_prefixes() {
        let mut keys = PrefixKeys::default();
        assert_eq!(keys.extend("ab"), prompt_key("ab"));
        assert_eq!(keys.extend("c"), prompt_key("abc"));
    }
}
