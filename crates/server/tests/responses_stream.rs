//! The Responses API: what a reply becomes, streamed and not.

mod common;

use std::time::Duration;

use ds4_server::api::Frame;
use ds4_server::api::responses::{self, ReasoningDisplay, ReplyShape, Stream, complete};
use ds4_server::generation::{FailureKind, Finish, ReplyEvent};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use common::{Script, SseEvent, Writer, read_frames};

/// What a request of an agent asks for: functions, one of them in a namespace, a custom tool, a
/// shell.
fn request(reasoning: ReasoningDisplay, encrypted: bool, logprobs: bool) -> Value {
    let mut include = Vec::new();
    include.extend(encrypted.then_some("reasoning.encrypted_content"));
    include.extend(logprobs.then_some("message.output_text.logprobs"));
    let summary = match reasoning {
        ReasoningDisplay::Summary => json!({"summary": "auto"}),
        _ => json!({}),
    };
    let function = |name: &str| json!({"type": "function", "name": name, "strict": false, "parameters": {"type": "object", "properties": {}}});
    json!({
        "model": "deepseek-v4-flash",
        "input": "Hello",
        "reasoning": summary,
        "include": include,
        "top_logprobs": 2,
        "tools": [
            function("book"),
            function("weather"),
            {"type": "custom", "name": "apply_patch"},
            {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [function("spawn_agent")]},
            {"type": "local_shell"},
        ],
    })
}

fn shape(reasoning: ReasoningDisplay, encrypted: bool, logprobs: bool) -> ReplyShape {
    let body = request(reasoning, encrypted, logprobs);
    let parsed = responses::parse(&body, &common::context()).expect("a good request");
    ReplyShape {
        id: "resp_0123456789abcdef0123456789abcdef0123456789abcdef".to_owned(),
        reasoning,
        encrypted_content: encrypted.then(|| "turn-1".to_owned()),
        ..parsed.reply
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
    assert_eq!(stream.keep_alive(Duration::from_secs(60)), []);
    frames
}

const LIFECYCLE: [&str; 5] = [
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
];

/// Adds events up, and checks what the vendor's SDK and strict clients check on the way. Gives
/// the response of the terminal event.
fn accumulate(events: &[SseEvent]) -> Value {
    let mut items: Vec<Value> = Vec::new();
    // Text by delta, of every item.
    let mut texts: Vec<String> = Vec::new();
    let mut logprobs: Vec<Vec<Value>> = Vec::new();
    let mut n_done = 0;
    let mut terminal = None;
    let mut id = Value::Null;
    for (i, SseEvent { name, data }) in events.iter().enumerate() {
        let kind = data["type"].as_str().expect("every event has a type");
        assert_eq!(name.as_deref(), Some(kind), "the name is the type");
        assert_eq!(data["sequence_number"], i, "no gaps: {data}");
        assert!(terminal.is_none(), "nothing follows the end, found {kind}");
        if LIFECYCLE.contains(&kind) {
            let response = &data["response"];
            match i {
                0 => {
                    assert_eq!(kind, "response.created");
                    id = response["id"].clone();
                }
                _ => assert_eq!(response["id"], id, "one response, one id"),
            }
            for member in [
                "id",
                "object",
                "created_at",
                "model",
                "output",
                "parallel_tool_calls",
                "tool_choice",
                "tools",
                "status",
            ] {
                assert!(!response[member].is_null(), "{kind} has {member}");
            }
            if !matches!(kind, "response.created" | "response.in_progress") {
                terminal = Some((kind.to_owned(), response.clone()));
            }
            continue;
        }
        let index = data["output_index"].as_u64().expect("output_index") as usize;
        if kind == "response.output_item.added" {
            assert_eq!(index, items.len(), "items are numbered from 0");
            assert_eq!(n_done, items.len(), "items do not overlap");
            assert_eq!(data["item"]["status"], "in_progress");
            items.push(data["item"].clone());
            texts.push(String::new());
            logprobs.push(Vec::new());
            continue;
        }
        assert_eq!(index + 1, items.len(), "{kind} is about the open item");
        assert_eq!(index, n_done, "{kind} is about an open item");
        let item = &mut items[index];
        if kind == "response.output_item.done" {
            let done = &data["item"];
            for member in ["id", "type", "call_id", "name", "namespace"] {
                assert_eq!(item[member], done[member], "{member} stays the same");
            }
            *item = done.clone();
            n_done += 1;
            continue;
        }
        assert_eq!(data["item_id"], item["id"], "{kind}");
        let part = data["content_index"]
            .as_u64()
            .or(data["summary_index"].as_u64());
        let is_part = !kind.contains("arguments") && !kind.contains("custom_tool_call_input");
        assert_eq!(part, is_part.then_some(0), "{kind}");
        if kind.ends_with(".delta") {
            let delta = data["delta"].as_str().expect("delta");
            texts[index].push_str(delta);
            if kind == "response.output_text.delta" {
                let more = data["logprobs"].as_array().expect("logprobs");
                logprobs[index].extend(more.iter().cloned());
            } else {
                assert!(!delta.is_empty(), "no delta is empty");
            }
        } else if kind.ends_with("part.added") {
            assert_eq!(data["part"]["text"], "");
        } else if kind.ends_with(".done") {
            let text = ["text", "arguments", "input"]
                .iter()
                .find_map(|m| data[*m].as_str());
            let text = text
                .or(data["part"]["text"].as_str())
                .expect("the whole text");
            assert_eq!(text, texts[index], "{kind} repeats the deltas");
        } else {
            panic!("unknown event {kind}");
        }
    }
    let (kind, response) = terminal.expect("one terminal event");
    let status = response["status"].as_str().expect("status");
    match kind.as_str() {
        "response.completed" => assert_eq!(status, "completed"),
        "response.failed" => {
            assert_eq!(status, "failed");
            items.truncate(n_done);
        }
        _ => {
            assert!(matches!(status, "incomplete" | "cancelled"), "{status}");
            // Half an input of a custom tool is never done, so that nobody runs it.
            if items
                .last()
                .is_some_and(|item| item["type"] == "custom_tool_call")
            {
                items.truncate(n_done);
            }
        }
    }
    assert_eq!(n_done, items.len(), "every item is done");
    assert_eq!(
        response["output"],
        Value::from(items.clone()),
        "output is the done items"
    );
    for ((item, text), logprobs) in items.iter().zip(&texts).zip(logprobs) {
        let is_complete = item["status"] == "completed";
        match item["type"].as_str().expect("type") {
            "message" => {
                assert_eq!(item["content"][0]["text"], *text);
                assert_eq!(item["content"][0]["logprobs"], Value::from(logprobs));
            }
            "reasoning" => {
                let part = match item["summary"].as_array().expect("summary").is_empty() {
                    true => &item["content"][0],
                    false => &item["summary"][0],
                };
                // A hidden one has neither.
                assert_eq!(part["text"].as_str().unwrap_or_default(), text);
            }
            "function_call" => assert_eq!(item["arguments"], *text),
            "custom_tool_call" => {
                assert!(is_complete, "half an input is not given");
                assert_eq!(item["input"], *text);
            }
            "local_shell_call" => assert!(is_complete, "half a command is not given"),
            other => panic!("unknown item {other}"),
        }
        if item["type"] == "function_call" && !is_complete {
            let arguments = item["arguments"].as_str().unwrap();
            let read: Result<Map<String, Value>, _> = serde_json::from_str(arguments);
            assert!(read.is_err(), "half a call is no JSON: {arguments}");
        }
    }
    response
}

#[test]
fn event_sequences_and_bodies_are_the_golden_ones() {
    for (name, script) in common::scripts() {
        // One file shows reasoning as text, the others as a summary.
        let display = match name.as_str() {
            "reasoning_text" => ReasoningDisplay::Text,
            _ => ReasoningDisplay::Summary,
        };
        let encrypted = display == ReasoningDisplay::Summary;
        let shape = shape(display, encrypted, name == "text");
        let folder = common::testdata().join("responses");
        let frames = frames(&script, &shape);
        let response = accumulate(&read_frames(&frames));
        let text = common::text_of(&frames);
        common::compare_golden(&folder.join(format!("{name}.sse")), &text);
        if let Some(ReplyEvent::Finished(outcome)) = script.events.last() {
            let body = complete(outcome, &script.logprobs, &shape);
            assert_eq!(body, response, "{name}");
            let body = serde_json::to_string_pretty(&body).unwrap() + "\n";
            common::compare_golden(&folder.join(format!("{name}.json")), &body);
        }
    }
}

proptest! {
    #[test]
    fn a_body_is_what_its_stream_adds_up_to(
        script in common::arbitrary::script(),
        display in prop_oneof![
            Just(ReasoningDisplay::Summary),
            Just(ReasoningDisplay::Text),
            Just(ReasoningDisplay::Hidden),
        ],
        encrypted in any::<bool>(),
        logprobs in any::<bool>(),
    ) {
        let shape = shape(display, encrypted, logprobs);
        let response = accumulate(&read_frames(&frames(&script, &shape)));
        if let Some(ReplyEvent::Finished(outcome)) = script.events.last() {
            prop_assert_eq!(response, complete(outcome, &script.logprobs, &shape));
        } else {
            prop_assert_eq!(&response["error"]["code"], "server_error");
        }
    }

    #[test]
    fn a_failure_at_any_point_ends_the_stream_once(
        script in common::arbitrary::script(),
        at in 0usize..20,
    ) {
        let mut script = script;
        let failure = Writer::new(1, 0).fail(FailureKind::Overloaded, "Too many requests wait.");
        let at = at.min(script.events.len() - 1);
        script.events.truncate(at);
        script.events.push(failure.events.last().unwrap().clone());
        let shape = shape(ReasoningDisplay::Summary, true, false);
        let response = accumulate(&read_frames(&frames(&script, &shape)));
        prop_assert_eq!(&response["status"], "failed");
        prop_assert_eq!(&response["error"]["code"], "rate_limit_exceeded");
    }
}

/// The names of events, several deltas in a row as one.
fn outline(events: &[SseEvent]) -> Vec<(String, Value)> {
    let mut outline: Vec<(String, Value)> = Vec::new();
    for event in events {
        let name = event.name.clone().expect("a name");
        let about = event.data["item_id"].clone();
        let is_delta = name.ends_with(".delta");
        if is_delta && outline.last() == Some(&(name.clone(), about.clone())) {
            continue;
        }
        outline.push((name, about));
    }
    outline
}

#[test]
fn a_stored_response_is_streamed_again_as_it_was() {
    for (_, script) in common::scripts() {
        for reasoning in [ReasoningDisplay::Summary, ReasoningDisplay::Text] {
            let shape = shape(reasoning, true, false);
            let live = read_frames(&frames(&script, &shape));
            let end = accumulate(&live);
            // A call that was cut off has no end in a stream, and no place in a stored response.
            if end["status"] != "completed" {
                continue;
            }
            let replayed = read_frames(&responses::replay(&end, None));
            assert_eq!(accumulate(&replayed), end);
            assert_eq!(outline(&replayed), outline(&live));
            for (at, event) in replayed.iter().enumerate() {
                let rest = read_frames(&responses::replay(&end, Some(at as u64)));
                assert_eq!(rest, replayed[at + 1..], "behind {event:?}");
            }
        }
    }
}

#[test]
fn a_long_silence_is_broken_by_events_and_a_short_one_by_comments() {
    let mut stream = Stream::new(shape(ReasoningDisplay::Summary, true, false));
    let mut frames = stream.open();
    let mut n_events = Vec::new();
    for seconds in (5..=100).step_by(5) {
        // What the client does not read of is no sign of life.
        frames.extend(stream.event(&ReplyEvent::Progress {
            n_done: seconds,
            n_prompt: 1000,
        }));
        let kept = stream.keep_alive(Duration::from_secs(5));
        assert_eq!(kept.len(), 1);
        let events = read_frames(&kept);
        if let Some(event) = events.first() {
            assert_eq!(event.data["type"], "response.in_progress");
            n_events.push(seconds);
        }
        frames.extend(kept);
    }
    assert_eq!(n_events, [30, 60, 90]);
    // After an event of the reply the silence is counted anew.
    frames.extend(stream.event(&ReplyEvent::Content {
        text: "Hi".to_owned(),
        logprobs: Vec::new(),
    }));
    assert!(read_frames(&stream.keep_alive(Duration::from_secs(25))).is_empty());
    frames.extend(stream.keep_alive(Duration::from_secs(5)));
    assert_eq!(read_frames(&frames[frames.len() - 1..]).len(), 1);
    let mut writer = Writer::new(9, 0);
    writer.content("Hi");
    let script = writer.finish(Finish::Stop);
    frames.extend(stream.event(script.events.last().unwrap()));
    let response = accumulate(&read_frames(&frames));
    assert_eq!(response["status"], "completed");
    assert_eq!(stream.response(), Some(&response));
}

#[test]
fn a_failure_before_the_first_event_is_an_error_event() {
    let mut stream = Stream::new(shape(ReasoningDisplay::Summary, false, false));
    let script = Writer::new(1, 0).fail(
        FailureKind::ContextOverflow {
            n_prompt: 9,
            n_context: 8,
        },
        "Too long.",
    );
    let events = read_frames(&stream.event(script.events.last().unwrap()));
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].data,
        json!({"type": "error", "sequence_number": 0, "code": "context_length_exceeded", "message": "Too long.", "param": null})
    );
}

#[test]
fn usage_counts_the_prompt_and_the_reply() {
    let mut writer = Writer::new(40, 12);
    writer.reasoning("Hm");
    writer.content("Hi");
    let script = writer.finish(Finish::Stop);
    let body = complete(
        &script.outcome,
        &script.logprobs,
        &shape(ReasoningDisplay::Text, false, false),
    );
    assert_eq!(
        body["usage"],
        json!({
            "input_tokens": 40,
            "input_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 28},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 42,
        })
    );
    assert_eq!(body["completed_at"], 1_790_000_005_u64);
}

#[test]
fn calls_come_back_as_the_client_declared_them() {
    let shape = shape(ReasoningDisplay::Summary, false, false);
    let arguments_and_items = [
        (
            "book",
            r#"{"place": "Da Enzo"}"#,
            json!({"type": "function_call", "name": "book", "arguments": "{\"place\": \"Da Enzo\"}"}),
        ),
        (
            "multi_agent_v1__spawn_agent",
            "{}",
            json!({"type": "function_call", "name": "spawn_agent", "namespace": "multi_agent_v1", "arguments": "{}"}),
        ),
        // The model left the namespace out.
        (
            "spawn_agent",
            "{}",
            json!({"type": "function_call", "name": "spawn_agent", "namespace": "multi_agent_v1", "arguments": "{}"}),
        ),
        (
            "apply_patch",
            r#"{"input": "*** Begin\n"}"#,
            json!({"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin\n"}),
        ),
        // Arguments of another shape: what text there is.
        (
            "apply_patch",
            r#"{"patch": "*** Begin\n"}"#,
            json!({"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin\n"}),
        ),
        (
            "apply_patch",
            r#"{"a": 1, "b": 2}"#,
            json!({"type": "custom_tool_call", "name": "apply_patch", "input": "{\"a\": 1, \"b\": 2}"}),
        ),
        (
            "local_shell",
            r#"{"command": "ls -l", "working_directory": "/tmp"}"#,
            json!({"type": "local_shell_call", "action": {"type": "exec", "command": ["bash", "-lc", "ls -l"], "env": {}, "working_directory": "/tmp"}}),
        ),
        (
            "undeclared",
            "{}",
            json!({"type": "function_call", "name": "undeclared", "arguments": "{}"}),
        ),
    ];
    for (name, arguments, expected) in arguments_and_items {
        let mut writer = Writer::new(9, 0);
        writer.call(name, &[arguments], true);
        let script = writer.finish(Finish::ToolCalls);
        let mut item = complete(&script.outcome, &script.logprobs, &shape)["output"][0].clone();
        assert_eq!(item["call_id"], script.outcome.calls[0].id);
        assert_eq!(item["status"], "completed");
        let id = item["id"].as_str().expect("id").to_owned();
        assert_eq!(id.len() - id.find('_').unwrap(), 25, "{id} has 24 digits");
        for member in ["id", "call_id", "status"] {
            item.as_object_mut().unwrap().shift_remove(member);
        }
        assert_eq!(item, expected, "{name}({arguments})");
    }
}
