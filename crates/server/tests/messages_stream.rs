//! The Messages API: what a reply becomes, streamed and not.

mod common;

use std::time::Duration;

use ds4_server::api::Frame;
use ds4_server::api::messages::{ReplyShape, Stream, ThinkingDisplay, complete};
use ds4_server::generation::{FailureKind, Finish, ReplyEvent};
use proptest::prelude::*;
use serde_json::{Value, json};

use common::{Script, SseEvent, Writer, read_frames};

fn shape(thinking: ThinkingDisplay) -> ReplyShape {
    ReplyShape {
        id: "msg_0123456789abcdef0123456789abcdef".to_owned(),
        model: "deepseek-v4-flash".to_owned(),
        request_id: "req_1".to_owned(),
        thinking,
        signature: "sig-1".to_owned(),
        warnings: Vec::new(),
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

/// Adds events up as the vendor's SDK does. `None` after an error event.
fn accumulate(events: &[SseEvent]) -> Option<Value> {
    let mut message = Value::Null;
    let mut arguments: Vec<String> = Vec::new();
    let mut open: Option<usize> = None;
    let mut n_stops = 0;
    for SseEvent { name, data } in events {
        let kind = data["type"].as_str().expect("every event has a type");
        assert_eq!(name.as_deref(), Some(kind), "the name is the type");
        assert_eq!(n_stops, 0, "nothing follows message_stop, found {kind}");
        if kind == "error" {
            return None;
        }
        if kind == "ping" {
            continue;
        }
        assert_eq!(
            message.is_null(),
            kind == "message_start",
            "{kind} out of place"
        );
        let index = data["index"].as_u64().map(|i| i as usize);
        match kind {
            "message_start" => {
                message = data["message"].clone();
                for member in ["id", "type", "role", "model", "content", "usage"] {
                    assert!(!message[member].is_null(), "message_start has {member}");
                }
            }
            "content_block_start" => {
                assert_eq!(open, None, "blocks do not overlap");
                let content = message["content"].as_array_mut().expect("content");
                assert_eq!(index, Some(content.len()), "blocks are numbered from 0");
                content.push(data["content_block"].clone());
                arguments.push(String::new());
                open = index;
            }
            "content_block_delta" => {
                assert_eq!(index, open, "a delta is for the open block");
                let index = index.expect("index");
                let block = &mut message["content"][index];
                let delta = &data["delta"];
                let mut append = |name: &str| {
                    let more = delta[name].as_str().expect("delta text");
                    assert!(!more.is_empty(), "no delta is empty");
                    block[name] = format!("{}{more}", block[name].as_str().unwrap()).into();
                };
                match (delta["type"].as_str().unwrap(), data["index"].as_u64()) {
                    ("text_delta", _) => append("text"),
                    ("thinking_delta", _) => append("thinking"),
                    ("signature_delta", _) => block["signature"] = delta["signature"].clone(),
                    ("input_json_delta", _) => {
                        arguments[index].push_str(delta["partial_json"].as_str().unwrap());
                    }
                    (other, _) => panic!("unknown delta {other}"),
                }
            }
            "content_block_stop" => {
                assert_eq!(index, open, "the open block stops");
                open = None;
            }
            "message_delta" => {
                assert_eq!(open, None, "message_delta comes behind the blocks");
                for name in ["stop_reason", "stop_sequence"] {
                    message[name] = data["delta"][name].clone();
                }
                assert!(message["stop_reason"].is_string(), "a known stop reason");
                for (name, value) in data["usage"].as_object().expect("usage") {
                    message["usage"][name] = value.clone();
                }
            }
            "message_stop" => n_stops += 1,
            other => panic!("unknown event {other}"),
        }
    }
    assert_eq!(n_stops, 1, "one message_stop");
    let blocks = message["content"].as_array().expect("content").clone();
    let mut content = Vec::new();
    for (mut block, arguments) in blocks.into_iter().zip(arguments) {
        if block["type"] == "tool_use" {
            // A call that was cut off is never a whole JSON text.
            match serde_json::from_str(&arguments) {
                Ok(input) => block["input"] = input,
                Err(_) => continue,
            }
        }
        content.push(block);
    }
    if content.iter().all(|block| block["type"] == "thinking") {
        content.push(json!({"type": "text", "text": ""}));
    }
    message["content"] = content.into();
    Some(message)
}

#[test]
fn event_sequences_and_bodies_are_the_golden_ones() {
    for (name, script) in common::scripts() {
        let shape = shape(ThinkingDisplay::Shown);
        let folder = common::testdata().join("messages");
        let frames = frames(&script, &shape);
        common::compare_golden(
            &folder.join(format!("{name}.sse")),
            &common::text_of(&frames),
        );
        if let Some(ReplyEvent::Finished(outcome)) = script.events.last() {
            let body = serde_json::to_string_pretty(&complete(outcome, &shape)).unwrap() + "\n";
            common::compare_golden(&folder.join(format!("{name}.json")), &body);
        }
    }
}

proptest! {
    #[test]
    fn a_body_is_what_its_stream_adds_up_to(
        script in common::arbitrary::script(),
        display in prop_oneof![
            Just(ThinkingDisplay::Shown),
            Just(ThinkingDisplay::Omitted),
            Just(ThinkingDisplay::Hidden),
        ],
    ) {
        let shape = shape(display);
        let events = read_frames(&frames(&script, &shape));
        let body = complete(&script.outcome, &shape);
        match accumulate(&events) {
            Some(message) => prop_assert_eq!(message, body),
            None => {
                let is_failed = matches!(script.events.last(), Some(ReplyEvent::Failed(_)));
                prop_assert!(is_failed || script.outcome.finish == Finish::Cancelled);
                prop_assert_eq!(&events.last().unwrap().data["type"], "error");
                let n_errors = events.iter().filter(|e| e.data["type"] == "error").count();
                prop_assert_eq!(n_errors, 1);
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
        let events = read_frames(&frames(&script, &shape(ThinkingDisplay::Shown)));
        let last = &events.last().unwrap().data;
        prop_assert_eq!(&last["type"], "error");
        prop_assert_eq!(&last["error"]["type"], "api_error");
        prop_assert_eq!(&last["request_id"], "req_1");
        let is_terminal = |event: &&SseEvent| {
            matches!(event.data["type"].as_str(), Some("error" | "message_stop"))
        };
        prop_assert_eq!(events.iter().filter(is_terminal).count(), 1);
    }
}

#[test]
fn input_tokens_add_up_to_the_prompt() {
    let mut writer = Writer::new(40, 12);
    writer.content("Hi");
    let script = writer.finish(Finish::Stop);
    let events = read_frames(&frames(&script, &shape(ThinkingDisplay::Shown)));
    let body = complete(&script.outcome, &shape(ThinkingDisplay::Shown));
    let starts = &events[0].data["message"]["usage"];
    let deltas = events.iter().find(|e| e.data["type"] == "message_delta");
    for usage in [starts, &deltas.unwrap().data["usage"], &body["usage"]] {
        let sum: u64 = [
            "input_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ]
        .iter()
        .map(|name| usage[*name].as_u64().expect("every input member"))
        .sum();
        assert_eq!(sum, 40, "{usage}");
        assert_eq!(usage["cache_read_input_tokens"], 12, "{usage}");
        assert!(usage["output_tokens"].is_u64(), "{usage}");
    }
}

#[test]
fn pings_are_sent_before_and_during_a_reply() {
    let mut stream = Stream::new(shape(ThinkingDisplay::Shown));
    assert_eq!(stream.open(), []);
    let ping = stream.keep_alive(Duration::from_secs(5));
    assert_eq!(
        common::text_of(&ping),
        "event: ping\ndata: {\"type\":\"ping\"}\n\n"
    );
    stream.event(&ReplyEvent::Started {
        n_prompt: 9,
        n_cached: 0,
        source: "none",
        why: String::new(),
    });
    assert_eq!(stream.keep_alive(Duration::from_secs(400)), ping);
}

#[test]
fn a_reply_that_never_started_still_begins_with_message_start() {
    let script = Writer::new(40, 12).finish(Finish::Length);
    let mut stream = Stream::new(shape(ThinkingDisplay::Shown));
    let frames = stream.event(script.events.last().unwrap());
    let message = accumulate(&read_frames(&frames)).expect("a message");
    assert_eq!(message["stop_reason"], "max_tokens");
    assert_eq!(message["content"], json!([{"type": "text", "text": ""}]));
}
