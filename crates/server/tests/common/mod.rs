//! Scripted replies, and reading back what an encoder wrote.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ds4_server::api::{Frame, Logprobs, Preferences, RequestContext};
use ds4_server::generation::{
    Call, Failure, FailureKind, Finish, Outcome, ReplyEvent, Thinking, Timings, TokenLogprob, Usage,
};
use ds4_text::{Effort, Mode};
use serde_json::Value;

/// 32 hex digits, the same in every run for the first call, the second and so on of a thread.
pub(crate) fn next_id() -> String {
    std::thread_local! {
        static COUNT: AtomicUsize = const { AtomicUsize::new(0) };
    }
    let n = COUNT.with(|count| count.fetch_add(1, Ordering::Relaxed));
    format!("{n:032x}")
}

/// A server that thinks by default.
pub(crate) fn context() -> RequestContext {
    RequestContext {
        default_thinking: Thinking {
            mode: Mode::Thinking,
            effort: Effort::High,
            budget: None,
        },
        model_id: "deepseek-v4-flash".to_owned(),
        aliases: BTreeMap::new(),
        strict_models: false,
        strict_tools: false,
        preferences: Preferences::default(),
        system_fingerprint: None,
        default_max_tokens: 393_216,
        n_context: 100_000,
        now_unix: 1_790_000_000,
        request_id: "req_1".to_owned(),
        new_id: next_id,
        headers: BTreeMap::new(),
    }
}

/// The repository's folder of test data of the server.
pub(crate) fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/server")
}

/// What a worker would say, and the outcome that goes with it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) events: Vec<ReplyEvent>,
    /// What was said up to the end, also where that is a failure.
    pub(crate) outcome: Outcome,
    /// Log probabilities of its tokens.
    pub(crate) logprobs: Logprobs,
}

/// One token for a piece of text; none for no text.
fn token_logprobs(text: &str) -> Vec<TokenLogprob> {
    let bytes = text.as_bytes().to_vec();
    let token = TokenLogprob {
        bytes: bytes.clone(),
        logprob: -0.5,
        top: vec![(bytes, -0.5), (b"x".to_vec(), f32::NEG_INFINITY)],
    };
    match text {
        "" => Vec::new(),
        _ => vec![token],
    }
}

/// Builds a [`Script`] event by event.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    events: Vec<ReplyEvent>,
    outcome: Outcome,
    logprobs: Logprobs,
}

impl Writer {
    pub(crate) fn new(n_prompt: usize, n_cached: usize) -> Writer {
        Writer {
            events: vec![ReplyEvent::Started {
                n_prompt,
                n_cached,
                source: "memory",
                why: String::new(),
            }],
            outcome: Outcome {
                finish: Finish::Stop,
                reasoning: String::new(),
                content: String::new(),
                calls: Vec::new(),
                usage: Usage {
                    n_prompt,
                    n_cached,
                    n_generated: 0,
                    n_reasoning: 0,
                },
                timings: Timings {
                    queue: Duration::from_millis(200),
                    prefill: Duration::from_millis(1800),
                    decode: Duration::from_millis(3000),
                    ..Timings::default()
                },
            },
            logprobs: Logprobs::default(),
        }
    }

    pub(crate) fn reasoning(&mut self, text: &str) {
        self.outcome.reasoning.push_str(text);
        self.outcome.usage.n_generated += 1;
        self.outcome.usage.n_reasoning += 1;
        let logprobs = token_logprobs(text);
        let text = text.to_owned();
        self.push_text(ReplyEvent::Reasoning { text, logprobs });
    }

    pub(crate) fn content(&mut self, text: &str) {
        self.outcome.content.push_str(text);
        self.outcome.usage.n_generated += 1;
        let logprobs = token_logprobs(text);
        let text = text.to_owned();
        self.push_text(ReplyEvent::Content { text, logprobs });
    }

    fn push_text(&mut self, event: ReplyEvent) {
        self.logprobs.collect(&event);
        self.events.push(event);
    }

    /// A call with its arguments in pieces; one that is not `complete` ends in the last piece.
    pub(crate) fn call(&mut self, name: &str, pieces: &[&str], complete: bool) {
        let index = self.outcome.calls.len();
        let id = format!("call_{:032x}", 0xca11_0000 + index);
        self.events.push(ReplyEvent::ToolStart {
            index,
            id: id.clone(),
            name: name.to_owned(),
        });
        for piece in pieces {
            self.outcome.usage.n_generated += 1;
            self.events.push(ReplyEvent::ToolArguments {
                index,
                text: (*piece).to_owned(),
            });
        }
        if complete {
            self.events.push(ReplyEvent::ToolEnd { index });
        }
        self.outcome.calls.push(Call {
            id,
            name: name.to_owned(),
            arguments: pieces.concat(),
            complete,
        });
    }

    pub(crate) fn finish(mut self, finish: Finish) -> Script {
        self.outcome.finish = finish;
        self.events
            .push(ReplyEvent::Finished(Box::new(self.outcome.clone())));
        self.script()
    }

    pub(crate) fn fail(mut self, kind: FailureKind, message: &str) -> Script {
        self.events.push(ReplyEvent::Failed(Failure {
            kind,
            message: message.to_owned(),
            param: None,
        }));
        self.script()
    }

    fn script(self) -> Script {
        Script {
            events: self.events,
            outcome: self.outcome,
            logprobs: self.logprobs,
        }
    }
}

/// Reads a script of `testdata/server/replies`; its README says what stands in one.
pub(crate) fn read_script(value: &Value) -> Script {
    let count = |name: &str| value[name].as_u64().expect(name) as usize;
    let mut writer = Writer::new(count("n_prompt"), count("n_cached"));
    for step in value["reply"].as_array().expect("reply") {
        let (kind, what) = step
            .as_object()
            .expect("a step")
            .iter()
            .next()
            .expect("a step");
        match kind.as_str() {
            "reasoning" => writer.reasoning(what.as_str().expect("text")),
            "content" => writer.content(what.as_str().expect("text")),
            "call" | "cut_call" => {
                let pieces: Vec<&str> = what["arguments"]
                    .as_array()
                    .expect("arguments")
                    .iter()
                    .map(|piece| piece.as_str().expect("text"))
                    .collect();
                let name = what["name"].as_str().expect("name");
                writer.call(name, &pieces, kind == "call");
            }
            other => panic!("{other} is no step of a reply"),
        }
    }
    let end = &value["end"];
    let finish = match end["finish"].as_str() {
        None => {
            let kind = match end["failed"].as_str().expect("finish or failed") {
                "internal" => FailureKind::Internal,
                "overloaded" => FailureKind::Overloaded,
                "context_overflow" => FailureKind::ContextOverflow {
                    n_prompt: 9,
                    n_context: 8,
                },
                "unavailable" => FailureKind::Unavailable,
                other => panic!("{other} is no kind of failure here"),
            };
            return writer.fail(kind, end["message"].as_str().expect("message"));
        }
        Some("stop") => Finish::Stop,
        Some("stop_string") => Finish::StopString(end["text"].as_str().expect("text").to_owned()),
        Some("tool_calls") => Finish::ToolCalls,
        Some("length") => Finish::Length,
        Some("context_full") => Finish::ContextFull,
        Some("cancelled") => Finish::Cancelled,
        Some(other) => panic!("{other} is no finish"),
    };
    writer.finish(finish)
}

/// An event as a client reads it. Comments are none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SseEvent {
    pub(crate) name: Option<String>,
    pub(crate) data: Value,
}

/// Reads frames back, each of which must be one whole event or comment.
pub(crate) fn read_frames(frames: &[Frame]) -> Vec<SseEvent> {
    let mut events = Vec::new();
    for Frame(bytes) in frames {
        let text = std::str::from_utf8(bytes).expect("frames are UTF-8");
        let body = text
            .strip_suffix("\n\n")
            .expect("a frame ends in an empty line");
        assert!(!body.contains("\n\n"), "one frame is one event: {text}");
        let mut name = None;
        let mut data = None;
        for line in body.lines() {
            if let Some(value) = line.strip_prefix("event: ") {
                name = Some(value.to_owned());
            } else if let Some(value) = line.strip_prefix("data: ") {
                data = Some(serde_json::from_str(value).expect("data is JSON"));
            } else {
                assert!(line.starts_with(':'), "no line of an event stream: {line}");
            }
        }
        if let Some(data) = data {
            events.push(SseEvent { name, data });
        }
    }
    events
}

/// The bytes of frames as text.
pub(crate) fn text_of(frames: &[Frame]) -> String {
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.0.clone()).collect();
    String::from_utf8(bytes).expect("frames are UTF-8")
}

/// Compares with a golden file, or writes it where `DS4_BLESS` is set.
pub(crate) fn compare_golden(path: &Path, text: &str) {
    if std::env::var_os("DS4_BLESS").is_some() {
        std::fs::write(path, text).expect("a golden file can be written");
        return;
    }
    let golden = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}; DS4_BLESS=1 writes it", path.display()));
    if golden == text {
        return;
    }
    let differs = golden.lines().zip(text.lines()).position(|(a, b)| a != b);
    let at = differs.unwrap_or_else(|| golden.lines().count().min(text.lines().count()));
    panic!(
        "{} line {}:\n  expected {}\n  found    {}\nDS4_BLESS=1 writes what is found.",
        path.display(),
        at + 1,
        golden.lines().nth(at).unwrap_or("the end"),
        text.lines().nth(at).unwrap_or("the end"),
    );
}

/// All scripts of `testdata/server/replies` by name.
pub(crate) fn scripts() -> Vec<(String, Script)> {
    let folder = testdata().join("replies");
    let mut found: Vec<(String, Script)> = std::fs::read_dir(&folder)
        .expect("testdata/server/replies")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy();
            let text = std::fs::read_to_string(&path).expect("a script");
            let value = serde_json::from_str(&text).expect("a script is JSON");
            (name.into_owned(), read_script(&value))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty(), "no scripts in {}", folder.display());
    found
}

/// Arbitrary replies for property tests.
pub(crate) mod arbitrary {
    use super::{Script, Writer};
    use ds4_server::generation::{FailureKind, Finish};
    use proptest::prelude::*;

    /// Texts with what is hard in JSON, in event streams and in UTF-8.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z ]{0,6}",
            Just(" ".to_owned()),
            Just("\n\n".to_owned()),
            Just("data: x\r\n".to_owned()),
            Just("\"\\\u{0}\u{1f}".to_owned()),
            Just("é😀\u{2028}".to_owned()),
        ]
    }

    #[derive(Clone, Debug)]
    pub(crate) struct CallPlan {
        name: String,
        input: Option<String>,
        cuts: Vec<usize>,
    }

    fn call_plan() -> impl Strategy<Value = CallPlan> {
        let name = prop_oneof![
            Just("book"),
            Just("apply_patch"),
            Just("multi_agent_v1__spawn_agent"),
            Just("local_shell"),
            Just("undeclared"),
        ];
        let input = proptest::option::of(piece());
        (name, input, proptest::collection::vec(0usize..200, 0..4)).prop_map(
            |(name, input, cuts)| CallPlan {
                name: name.to_owned(),
                input,
                cuts,
            },
        )
    }

    impl CallPlan {
        /// The arguments in pieces; a cut call loses its last character and perhaps more.
        fn pieces(&self, complete: bool) -> Vec<String> {
            let mut text = match &self.input {
                Some(input) => {
                    let mut json = "{\"input\": ".to_owned();
                    ds4_text::json::write_string(input, &mut json);
                    json + "}"
                }
                None => "{}".to_owned(),
            };
            if !complete {
                text.pop();
                let n_more = self.cuts.first().copied().unwrap_or(0) % (text.len() + 1);
                for _ in 0..n_more {
                    text.pop();
                }
            }
            let mut cuts: Vec<usize> = self
                .cuts
                .iter()
                .map(|cut| cut % (text.len() + 1))
                .filter(|cut| text.is_char_boundary(*cut))
                .collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            cuts.windows(2)
                .map(|pair| text[pair[0]..pair[1]].to_owned())
                .collect()
        }
    }

    /// How a reply ends.
    fn end() -> impl Strategy<Value = Option<Finish>> {
        prop_oneof![
            Just(Some(Finish::Stop)),
            Just(Some(Finish::StopString("END".to_owned()))),
            Just(Some(Finish::Length)),
            Just(Some(Finish::ContextFull)),
            Just(Some(Finish::Cancelled)),
            Just(None),
        ]
    }

    prop_compose! {
        /// Reasoning, content and calls in pieces, each perhaps nothing, and any end. Only a
        /// reply that ends early has a call that was cut off.
        pub(crate) fn script()(
            reasoning in proptest::collection::vec(piece(), 0..4),
            content in proptest::collection::vec(piece(), 0..4),
            calls in proptest::collection::vec(call_plan(), 0..4),
            is_cut in any::<bool>(),
            end in end(),
        ) -> Script {
            let mut writer = Writer::new(40, 12);
            for text in &reasoning {
                writer.reasoning(text);
            }
            for text in &content {
                writer.content(text);
            }
            let ends_early = !matches!(end, Some(Finish::Stop | Finish::StopString(_)));
            for (i, call) in calls.iter().enumerate() {
                let complete = !(ends_early && is_cut && i + 1 == calls.len());
                let pieces = call.pieces(complete);
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                writer.call(&call.name, &pieces, complete);
            }
            match end {
                Some(Finish::Stop) if !calls.is_empty() => writer.finish(Finish::ToolCalls),
                Some(finish) => writer.finish(finish),
                None => writer.fail(FailureKind::Internal, "The device failed."),
            }
        }
    }
}

/// Every body that differs from `body` in one node, which is something else or not there.
pub(crate) fn with_one_node_changed(body: &Value) -> Vec<Value> {
    let mut pointers = Vec::new();
    list_pointers(body, String::new(), &mut pointers);
    let others = [
        Value::Null,
        true.into(),
        (-3).into(),
        "né".into(),
        serde_json::json!([]),
        serde_json::json!({}),
        serde_json::json!([{}]),
    ];
    let mut changed = Vec::new();
    for pointer in pointers {
        for other in &others {
            let mut body = body.clone();
            *body.pointer_mut(&pointer).expect("a listed node") = other.clone();
            changed.push(body);
        }
    }
    changed
}

fn list_pointers(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                list_pointers(item, format!("{pointer}/{i}"), pointers);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                list_pointers(member, format!("{pointer}/{name}"), pointers);
            }
        }
        _ => {}
    }
    pointers.push(pointer);
}
