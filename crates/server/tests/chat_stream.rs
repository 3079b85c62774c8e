//! The Chat Completions API: what a reply becomes, streamed and not.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use ds4_server::api::chat::{ReasoningDisplay, ReplyShape, Stream, complete, token_count};
use ds4_server::api::{Envelope, Frame, UsageReport};
use ds4_server::generation::{FailureKind, Finish, ReplyEvent};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use common::{Script, SseEvent, Writer, read_frames};

fn shape() -> ReplyShape {
    ReplyShape {
        envelope: Envelope {
            id: "chatcmpl-0123456789abcdef0123456789abcdef".to_owned(),
            created: 1_790_000_000,
            model: "deepseek-v4-flash".to_owned(),
            system_fingerprint: Some("fp_1".to_owned()),
            ..Envelope::default()
        },
        usage: UsageReport::OwnChunk,
        custom_tools: BTreeSet::from(["apply_patch".to_owned()]),
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
    assert_eq!(stream.open(), []);
    assert_eq!(stream.keep_alive(Duration::from_secs(5)), []);
    frames
}

/// The chunks before `[DONE]`, and whether it came.
fn chunks(frames: &[Frame]) -> (Vec<Value>, bool) {
    let is_done = |frame: &Frame| frame.0 == b"data: [DONE]\n\n";
    let n_done = frames.iter().filter(|frame| is_done(frame)).count();
    assert!(n_done <= 1, "[DONE] comes once");
    let ends_in_done = frames.last().is_some_and(is_done);
    assert_eq!(n_done == 1, ends_in_done, "nothing follows [DONE]");
    let data = &frames[..frames.len() - n_done];
    let chunk = |event: SseEvent| {
        assert_eq!(event.name, None, "events have no names");
        event.data
    };
    (
        read_frames(data).into_iter().map(chunk).collect(),
        ends_in_done,
    )
}

/// Joins `more` to `all` as the clients do: strings are joined, lists of tool calls are joined by
/// index, other lists are continued, anything else is replaced.
fn join(all: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (all.get_mut(name), value) {
            (_, Value::Null) => {
                all.entry(name.clone()).or_insert(Value::Null);
            }
            (Some(Value::String(text)), Value::String(more)) => text.push_str(more),
            (Some(Value::Object(members)), Value::Object(more)) => join(members, more),
            (Some(Value::Array(items)), Value::Array(more)) if name == "tool_calls" => {
                join_calls(items, more);
            }
            (None | Some(Value::Null), Value::Array(more)) if name == "tool_calls" => {
                let mut items = Vec::new();
                join_calls(&mut items, more);
                all.insert(name.clone(), items.into());
            }
            (Some(Value::Array(items)), Value::Array(more)) => items.extend(more.clone()),
            _ => {
                all.insert(name.clone(), value.clone());
            }
        }
    }
}

fn join_calls(calls: &mut Vec<Value>, more: &[Value]) {
    for delta in more {
        let mut delta = delta.as_object().expect("a call").clone();
        let index = delta.remove("index").expect("an index");
        let index = index.as_u64().expect("a number") as usize;
        assert!(index <= calls.len(), "calls begin in their order");
        if index == calls.len() {
            assert!(delta.contains_key("id"), "the first delta has the id");
            let kind = delta["type"].as_str().expect("the type").to_owned();
            assert!(delta[&kind]["name"].is_string(), "and the name");
            calls.push(json!({}));
        } else {
            let function = &delta["function"];
            let is_repeated = delta.contains_key("id")
                || delta.contains_key("type")
                || function.get("name").is_some();
            assert!(!is_repeated, "id, type and name come once, found {delta:?}");
        }
        join(calls[index].as_object_mut().expect("a call"), &delta);
    }
}

/// Adds chunks up as a client does. `None` after an error.
fn accumulate(frames: &[Frame], shape: &ReplyShape) -> Option<Value> {
    let (chunks, is_done) = chunks(frames);
    let first = &chunks[0]["choices"][0]["delta"];
    assert_eq!(
        *first,
        json!({"role": "assistant", "content": ""}),
        "the role comes first"
    );
    let mut message = Map::new();
    let mut choice = Map::new();
    let mut body = json!({});
    let mut finish_reason = Value::Null;
    for (i, chunk) in chunks.iter().enumerate() {
        if chunk.get("error").is_some() {
            assert!(!is_done, "an error is not followed by [DONE]");
            assert_eq!(i + 1, chunks.len(), "an error is the end");
            return None;
        }
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], shape.envelope.id.as_str());
        assert_eq!(chunk["created"], shape.envelope.created);
        assert_eq!(chunk["model"], shape.envelope.model.as_str());
        assert_eq!(chunk["system_fingerprint"], "fp_1");
        let choices = chunk["choices"].as_array().expect("choices");
        let is_last = i + 1 == chunks.len();
        match shape.usage {
            UsageReport::None => assert!(chunk.get("usage").is_none()),
            UsageReport::OwnChunk => {
                assert_eq!(choices.is_empty(), is_last, "the last chunk has no choice");
                let usage = chunk.get("usage").expect("every chunk says what was used");
                assert_eq!(usage.is_object(), is_last);
            }
            UsageReport::LastChoice => assert_eq!(chunk.get("usage").is_some(), is_last),
        }
        for name in ["usage", "timings"] {
            if let Some(value @ Value::Object(_)) = chunk.get(name) {
                body[name] = value.clone();
            }
        }
        let Some(part) = choices.first() else {
            continue;
        };
        assert_eq!(choices.len(), 1);
        assert_eq!(part["index"], 0);
        assert_eq!(part.get("logprobs").is_some(), shape.logprobs);
        assert!(finish_reason.is_null(), "nothing follows the finish reason");
        finish_reason = part["finish_reason"].clone();
        let delta = part["delta"].as_object().expect("a delta");
        assert!(i == 0 || !delta.contains_key("role"), "the role comes once");
        assert!(!delta.values().any(Value::is_null), "no delta is null");
        join(&mut message, delta);
        if let Some(Value::Object(lists)) = part.get("logprobs") {
            let mut more = Map::new();
            more.insert("logprobs".to_owned(), lists.clone().into());
            join(&mut choice, &more);
        }
    }
    assert!(is_done, "a reply ends in [DONE]");
    let known = ["stop", "length", "tool_calls"];
    assert!(known.contains(&finish_reason.as_str().expect("a finish reason")));
    if message.contains_key("tool_calls") && message["content"] == "" {
        message["content"] = Value::Null;
    }
    message.insert("refusal".to_owned(), Value::Null);
    choice.insert("index".to_owned(), 0.into());
    choice.entry("logprobs").or_insert(Value::Null);
    choice.insert("message".to_owned(), message.into());
    choice.insert("finish_reason".to_owned(), finish_reason);
    body["id"] = shape.envelope.id.as_str().into();
    body["object"] = "chat.completion".into();
    body["created"] = shape.envelope.created.into();
    body["model"] = shape.envelope.model.as_str().into();
    body["system_fingerprint"] = "fp_1".into();
    body["choices"] = json!([choice]);
    Some(body)
}

#[test]
fn chunks_and_bodies_are_the_golden_ones() {
    for (name, script) in common::scripts() {
        let shape = ReplyShape {
            logprobs: name == "text",
            ..shape()
        };
        let folder = common::testdata().join("chat");
        let text = common::text_of(&frames(&script, &shape));
        common::compare_golden(&folder.join(format!("{name}.sse")), &text);
        if let Some(ReplyEvent::Finished(outcome)) = script.events.last() {
            let body = complete(outcome, &script.logprobs, &shape);
            let body = serde_json::to_string_pretty(&body).unwrap() + "\n";
            common::compare_golden(&folder.join(format!("{name}.json")), &body);
        }
    }
}

fn any_shape() -> impl Strategy<Value = ReplyShape> {
    let usage = prop_oneof![
        Just(UsageReport::None),
        Just(UsageReport::OwnChunk),
        Just(UsageReport::LastChoice),
    ];
    let reasoning = prop_oneof![
        Just(ReasoningDisplay::ReasoningContent),
        Just(ReasoningDisplay::Reasoning),
        Just(ReasoningDisplay::Both),
        Just(ReasoningDisplay::Inline),
        Just(ReasoningDisplay::Hidden),
    ];
    (usage, reasoning, any::<[bool; 2]>()).prop_map(|(usage, reasoning, flags)| {
        let [logprobs, shows_stop] = flags;
        ReplyShape {
            usage,
            reasoning,
            logprobs,
            shows_stop,
            ..shape()
        }
    })
}

proptest! {
    #[test]
    fn a_body_is_what_its_stream_adds_up_to(
        script in common::arbitrary::script(),
        shape in any_shape(),
    ) {
        let frames = frames(&script, &shape);
        let mut body = complete(&script.outcome, &script.logprobs, &shape);
        match accumulate(&frames, &shape) {
            Some(found) => {
                if shape.usage == UsageReport::None {
                    for name in ["usage", "timings"] {
                        body.as_object_mut().unwrap().remove(name).expect(name);
                    }
                }
                prop_assert_eq!(found, body);
            }
            None => {
                let is_failed = matches!(script.events.last(), Some(ReplyEvent::Failed(_)));
                prop_assert!(is_failed || script.outcome.finish == Finish::Cancelled);
            }
        }
    }

    #[test]
    fn a_failure_at_any_point_ends_the_stream_once(
        script in common::arbitrary::script(),
        at in 0usize..20,
    ) {
        let mut script = script;
        let failure = Writer::new(1, 0).fail(FailureKind::Internal, "The device failed.");
        let at = at.min(script.events.len() - 1);
        script.events.truncate(at);
        script.events.push(failure.events.last().unwrap().clone());
        let (chunks, is_done) = chunks(&frames(&script, &shape()));
        prop_assert!(!is_done);
        let error = &chunks.last().unwrap()["error"];
        prop_assert_eq!(&error["message"], "The device failed.");
        prop_assert_eq!(&error["type"], "server_error");
        prop_assert_eq!(&error["code"], "server_error");
        let n_errors = chunks.iter().filter(|c| c.get("error").is_some()).count();
        prop_assert_eq!(n_errors, 1);
        let has_reason = |c: &&Value| c["choices"][0]["finish_reason"].is_string();
        prop_assert_eq!(chunks.iter().filter(has_reason).count(), 0);
    }
}

#[test]
fn usage_says_what_was_cached_and_thought() {
    let mut writer = Writer::new(40, 12);
    writer.reasoning("a");
    writer.content("b");
    let script = writer.finish(Finish::Stop);
    let body = complete(&script.outcome, &script.logprobs, &shape());
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": 40,
            "completion_tokens": 2,
            "total_tokens": 42,
            "prompt_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 28},
            "completion_tokens_details": {"reasoning_tokens": 1},
            "prompt_cache_hit_tokens": 12,
            "prompt_cache_miss_tokens": 28,
        })
    );
    let timings = &body["timings"];
    assert_eq!(
        (&timings["cache_n"], &timings["prompt_n"]),
        (&json!(12), &json!(28))
    );
    for name in ["prompt_per_second", "predicted_per_second", "queue_ms"] {
        assert!(
            timings[name].as_f64().expect(name) > 0.0,
            "{name}: {timings}"
        );
    }
    let nothing = Writer::new(12, 12).finish(Finish::Length);
    let body = complete(&nothing.outcome, &nothing.logprobs, &shape());
    assert_eq!(
        body["timings"]["prompt_per_token_ms"],
        json!(0.0),
        "no division by nothing"
    );
}

#[test]
fn comments_keep_the_connection_alive_before_and_during_a_reply() {
    let mut stream = Stream::new(shape());
    let comment = stream.keep_alive(Duration::from_secs(5));
    assert_eq!(common::text_of(&comment), ": ping\n\n");
    stream.open();
    stream.event(&ReplyEvent::Started {
        n_prompt: 9,
        n_cached: 0,
        source: "none",
        why: String::new(),
    });
    assert_eq!(stream.keep_alive(Duration::from_secs(400)), comment);
}

#[test]
fn progress_is_told_when_asked_for() {
    let events = [
        ReplyEvent::Started {
            n_prompt: 90,
            n_cached: 30,
            source: "memory",
            why: String::new(),
        },
        ReplyEvent::Progress {
            n_done: 60,
            n_prompt: 90,
        },
    ];
    for progress in [false, true] {
        let mut stream = Stream::new(ReplyShape {
            progress,
            ..shape()
        });
        stream.open();
        let frames: Vec<Frame> = events.iter().flat_map(|e| stream.event(e)).collect();
        let found = read_frames(&frames);
        assert_eq!(found.len(), usize::from(progress));
        for event in found {
            let told = json!({"total": 90, "cache": 30, "processed": 60});
            assert_eq!(event.data["prompt_progress"], told);
            assert_eq!(event.data["choices"][0]["delta"], json!({}));
        }
    }
}

#[test]
fn a_reply_that_never_started_still_has_role_and_end() {
    let script = Writer::new(40, 12).finish(Finish::Length);
    let mut stream = Stream::new(shape());
    let frames = stream.event(script.events.last().unwrap());
    let body = accumulate(&frames, &shape()).expect("a message");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["message"]["content"], "");
}

#[test]
fn a_cancelled_reply_is_an_error() {
    let script = Writer::new(40, 12).finish(Finish::Cancelled);
    let body = complete(&script.outcome, &script.logprobs, &shape());
    assert_eq!(body["error"]["code"], "request_cancelled");
    let (chunks, is_done) = chunks(&frames(&script, &shape()));
    assert!(!is_done);
    assert_eq!(*chunks.last().unwrap(), body);
}

#[test]
fn a_count_has_the_shape_of_the_responses_api() {
    let expected = json!({"object": "response.input_tokens", "input_tokens": 7});
    assert_eq!(token_count(7), expected);
}
