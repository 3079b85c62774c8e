//! The Completions API: what a request asks for, and what a reply becomes.

mod common;

use std::time::Duration;

use ds4_server::api::completions::{Parsed, ReplyShape, Stream, complete, parse};
use ds4_server::api::{Envelope, Frame, UsageReport};
use ds4_server::generation::{Failure, FailureKind, Finish, PromptSource, ReplyEvent};
use ds4_text::Mode;
use proptest::prelude::*;
use serde_json::{Value, json};

use common::{Script, Writer, read_frames};

fn read(mut body: Value) -> Result<Parsed, Failure> {
    if body.get("prompt").is_none() {
        body["prompt"] = "Once upon".into();
    }
    parse(&body, &common::context())
}

fn text(body: Value) -> String {
    match read(body).expect("a good request").generation.prompt {
        PromptSource::Text(text) => text,
        PromptSource::Messages(_) | PromptSource::Tokens(_) => panic!("raw text"),
    }
}

#[test]
fn prompts_are_text_as_it_is() {
    assert_eq!(text(json!({"prompt": "Once <think>"})), "Once <think>");
    assert_eq!(text(json!({"prompt": ["Once"]})), "Once");
    assert_eq!(text(json!({"prompt": ""})), "");
    assert_eq!(
        text(json!({"prompt": "a", "suffix": "b"})),
        "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"
    );
    let parsed = read(json!({"max_tokens": 0, "logprobs": 3, "stop": "\n"})).unwrap();
    assert_eq!(parsed.generation.thinking.mode, Mode::Chat);
    assert_eq!(parsed.generation.max_tokens, Some(0));
    assert_eq!(parsed.generation.n_top_logprobs, Some(3));
    assert_eq!(parsed.generation.stop, ["\n"]);
    let unlimited = read(json!({})).unwrap().generation.max_tokens;
    assert_eq!(unlimited, Some(common::context().default_max_tokens));
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    use FailureKind::{Invalid, Unsupported};
    let cases = [
        (json!({"prompt": 7}), Invalid, "prompt"),
        (json!({"prompt": []}), Invalid, "prompt"),
        (json!({"prompt": ["a", 2]}), Invalid, "prompt"),
        (json!({"prompt": [[1], [2, "a"]]}), Invalid, "prompt"),
        (json!({"prompt": vec!["a"; 33]}), Invalid, "prompt"),
        (json!({"prompt": [1, -2]}), Invalid, "prompt"),
        (json!({"prompt": [1, "a"]}), Invalid, "prompt"),
        (json!({"prompt": [[]]}), Invalid, "prompt"),
        (json!({"prompt": [1], "echo": true}), Unsupported, "echo"),
        (json!({"prompt": [1], "suffix": "s"}), Unsupported, "suffix"),
        (json!({"n": 9}), Invalid, "n"),
        (json!({"best_of": 2}), Unsupported, "best_of"),
        (json!({"n": 0}), Invalid, "n"),
        (json!({"logprobs": 21}), Invalid, "logprobs"),
        (json!({"echo": true, "logprobs": 1}), Unsupported, "echo"),
        (json!({"add_bos": false}), Unsupported, "add_bos"),
        (json!({"max_tokens": -1}), Invalid, "max_tokens"),
        (json!({"temperature": 2.5}), Invalid, "temperature"),
    ];
    for (body, kind, param) in cases {
        let failure = read(body.clone()).expect_err(&body.to_string());
        assert_eq!(
            (failure.kind, failure.param.as_deref()),
            (kind, Some(param)),
            "{body}"
        );
    }
    let missing = parse(&json!({}), &common::context()).expect_err("no prompt");
    assert_eq!(missing.param.as_deref(), Some("prompt"));
}

fn shape() -> ReplyShape {
    ReplyShape {
        envelope: Envelope {
            id: "cmpl-0123456789abcdef0123456789abcdef".to_owned(),
            created: 1_790_000_000,
            model: "deepseek-v4-flash".to_owned(),
            system_fingerprint: None,
            ..Envelope::default()
        },
        usage: UsageReport::OwnChunk,
        ..ReplyShape::default()
    }
}

fn frames(script: &Script, shape: &ReplyShape) -> Vec<Frame> {
    let mut stream = Stream::new(shape.clone());
    let mut frames = stream.open();
    for event in &script.events {
        frames.extend(stream.event(event));
    }
    for event in &script.events {
        assert_eq!(stream.event(event), [], "an ended stream stays silent");
    }
    assert_eq!(stream.keep_alive(Duration::from_secs(5)), []);
    frames
}

/// Adds chunks up as a client does. `None` after an error.
fn accumulate(frames: &[Frame]) -> Option<Value> {
    let is_done = frames.last().is_some_and(|f| f.0 == b"data: [DONE]\n\n");
    let chunks = read_frames(&frames[..frames.len() - usize::from(is_done)]);
    let mut body = Value::Null;
    let mut text = String::new();
    let mut lists = Value::Null;
    let mut finish_reason = Value::Null;
    for chunk in chunks {
        let mut chunk = chunk.data;
        if chunk.get("error").is_some() {
            assert!(!is_done, "an error is not followed by [DONE]");
            return None;
        }
        assert_eq!(chunk["object"], "text_completion");
        if let Some(choice) = chunk["choices"].get(0) {
            assert!(finish_reason.is_null(), "nothing follows the finish reason");
            text.push_str(choice["text"].as_str().expect("text"));
            finish_reason = choice["finish_reason"].clone();
            let more = &choice["logprobs"];
            if lists.is_null() {
                lists = more.clone();
            } else if let Value::Object(more) = more {
                for (name, items) in more {
                    let all = lists[name].as_array_mut().expect(name);
                    all.extend(items.as_array().expect(name).clone());
                }
            }
        }
        chunk["choices"] = Value::Null;
        body = chunk;
    }
    assert!(is_done, "a reply ends in [DONE]");
    assert!(matches!(finish_reason.as_str(), Some("stop" | "length")));
    let choice = json!({
        "text": text,
        "index": 0,
        "logprobs": lists,
        "finish_reason": finish_reason,
    });
    body["choices"] = json!([choice]);
    Some(body)
}

proptest! {
    #[test]
    fn a_body_is_what_its_stream_adds_up_to(
        script in common::arbitrary::script(),
        flags in any::<[bool; 3]>(),
    ) {
        let [logprobs, shows_stop, wants_echo] = flags;
        let echo = if wants_echo { "Once 😀 upon".to_owned() } else { String::new() };
        let shape = ReplyShape { logprobs, shows_stop, echo, ..shape() };
        let mut outcome = script.outcome.clone();
        // Raw text has no calls.
        outcome.calls.clear();
        let mut script = script;
        if let Some(ReplyEvent::Finished(last)) = script.events.last_mut() {
            if outcome.finish == Finish::ToolCalls {
                outcome.finish = Finish::Stop;
            }
            **last = outcome.clone();
        }
        let body = complete(&outcome, &script.logprobs, &shape);
        match accumulate(&frames(&script, &shape)) {
            Some(found) => prop_assert_eq!(found, body),
            None => {
                let is_failed = matches!(script.events.last(), Some(ReplyEvent::Failed(_)));
                prop_assert!(is_failed || outcome.finish == Finish::Cancelled);
            }
        }
    }
}

#[test]
fn chunks_and_bodies_are_the_golden_ones() {
    for (name, script) in common::scripts() {
        let outcome = &script.outcome;
        if !outcome.calls.is_empty() || !outcome.reasoning.is_empty() {
            continue;
        }
        let shape = ReplyShape {
            logprobs: name == "text",
            echo: if name == "stop_string" {
                "zero ".to_owned()
            } else {
                String::new()
            },
            ..shape()
        };
        let folder = common::testdata().join("completions");
        let text = common::text_of(&frames(&script, &shape));
        common::compare_golden(&folder.join(format!("{name}.sse")), &text);
        if let Some(ReplyEvent::Finished(outcome)) = script.events.last() {
            let body = complete(outcome, &script.logprobs, &shape);
            let body = serde_json::to_string_pretty(&body).unwrap() + "\n";
            common::compare_golden(&folder.join(format!("{name}.json")), &body);
        }
    }
}

#[test]
fn offsets_count_characters_behind_the_echo() {
    let mut writer = Writer::new(4, 0);
    writer.content("é😀");
    writer.content("b");
    let script = writer.finish(Finish::Stop);
    let shape = ReplyShape {
        logprobs: true,
        echo: "aé".to_owned(),
        ..shape()
    };
    let body = complete(&script.outcome, &script.logprobs, &shape);
    let lists = &body["choices"][0]["logprobs"];
    assert_eq!(lists["text_offset"], json!([2, 4]));
    assert_eq!(lists["tokens"], json!(["é😀", "b"]));
    assert_eq!(lists["token_logprobs"], json!([-0.5, -0.5]));
    assert_eq!(lists["top_logprobs"][1], json!({"b": -0.5, "x": -9999.0}));
}
