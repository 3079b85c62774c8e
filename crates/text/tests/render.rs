//! Messages render to the bytes that the publisher's encoder writes.

mod common;

use common::{json, read, rows, str, testdata};
use ds4_text::{
    MarkerText, Message, Mode, Passage, Prompt, RenderOptions, Role, ToolCall, door, render,
};
use serde_json::Value;

/// Rows that the publisher's encoder fails on and that have a rendering here: arguments that are
/// JSON but not an object.
const RENDERED_ALTHOUGH_REFUSED: [&str; 1] = ["args_json_array"];

#[test]
fn every_render_case_gives_the_prompt_or_the_error_of_the_publisher() {
    for row in rows(&testdata("render_cases.jsonl")) {
        let id = str(&row, "id");
        let answer = json(&door::render_line(&row.to_string()).unwrap());
        assert_eq!(answer["id"], id);
        if RENDERED_ALTHOUGH_REFUSED.contains(&id) {
            let parameter = "<｜DSML｜parameter name=\"arguments\" string=\"false\">[1, 2]<";
            assert!(str(&answer, "prompt").contains(parameter), "{id}: {answer}");
        } else if row["expected_error"].is_string() {
            assert!(answer["error"].is_string(), "{id}: {answer}");
        } else {
            assert_eq!(str(&answer, "prompt"), str(&row, "expected"), "{id}");
        }
    }
}

fn golden(case: usize) -> (Vec<Message>, String) {
    let input = json(&read(&testdata(&format!("test_input_{case}.json"))));
    let mut messages = match &input {
        Value::Array(messages) => messages.clone(),
        object => object["messages"].as_array().expect("messages").clone(),
    };
    if let Value::Array(tools) = &input["tools"] {
        messages[0]["tools"] = tools.clone().into();
    }
    let messages = messages
        .iter()
        .map(|m| door::read_message(m).unwrap())
        .collect();
    (
        messages,
        read(&testdata(&format!("test_output_{case}.txt"))),
    )
}

#[test]
fn the_golden_conversations_render_to_the_golden_prompts() {
    for (case, mode) in [
        (1, Mode::Thinking),
        (2, Mode::Thinking),
        (3, Mode::Thinking),
        (4, Mode::Chat),
    ] {
        let (messages, expected) = golden(case);
        for marker_text in [MarkerText::Allow, MarkerText::Defuse] {
            let options = RenderOptions {
                mode,
                marker_text,
                ..RenderOptions::default()
            };
            let prompt = render(&messages, &options).unwrap();
            assert_eq!(prompt.text, expected, "case {case}, {marker_text:?}");
        }
    }
}

/// Every byte of the messages, and no byte of the template, is in a client range.
#[test]
fn client_ranges_hold_what_came_with_the_messages_and_nothing_else() {
    // Client text is made of digits, and the template has none but in `$TOOL_NAME2`.
    let mut system = Message::system("11");
    system.tools = vec![json(r#"{"22": 3}"#), json("4")];
    system.response_format = Some(json("5"));
    let mut assistant = Message::assistant("66");
    assistant.reasoning = Some("77".to_owned());
    assistant.tool_calls = vec![ToolCall {
        id: "a".to_owned(),
        name: "8".to_owned(),
        arguments: r#"{"9": "0", "1": 2}"#.to_owned(),
    }];
    let messages = [
        system,
        Message::new(Role::LatestReminder, "3"),
        Message::user("44"),
        Message::user("5"),
        assistant,
        Message::tool("a", "66"),
        Message::user("7"),
    ];
    let options = RenderOptions {
        mode: Mode::Thinking,
        ..RenderOptions::default()
    };
    let Prompt {
        text, untrusted, ..
    } = render(&messages, &options).unwrap();
    let inside: Vec<&str> = untrusted.iter().map(|range| &text[range.clone()]).collect();
    let expected = [
        "11",
        r#"{"22": 3}"#,
        "4",
        "5",
        "3",
        "44",
        "5",
        "77",
        "66",
        "8",
        "9",
        "0",
        "1",
        "2",
        "66",
        "7",
    ];
    assert_eq!(inside, expected);
    let mut outside = text.clone();
    for range in untrusted.into_iter().rev() {
        outside.replace_range(range, "");
    }
    let digits: String = outside.chars().filter(char::is_ascii_digit).collect();
    assert_eq!(digits, "2", "template text: {outside}");
}

#[test]
fn assistant_messages_are_found_between_markers() {
    let mut first = Message::assistant("A");
    first.reasoning = Some("r".to_owned());
    let mut second = Message::assistant("B");
    second.tool_calls = vec![ToolCall {
        id: "a".to_owned(),
        name: "f".to_owned(),
        arguments: "{}".to_owned(),
    }];
    let messages = [
        Message::user("1"),
        first,
        Message::user("2"),
        Message::user("3"),
        second,
        Message::tool("a", "4"),
    ];
    for (mode, drop_thinking, expected) in [
        (Mode::Chat, true, ["A", "B"]),
        (Mode::Thinking, true, ["A", "B"]),
        (Mode::Thinking, false, ["r</think>A", "</think>B"]),
    ] {
        let options = RenderOptions {
            mode,
            drop_thinking,
            ..RenderOptions::default()
        };
        let prompt = render(&messages, &options).unwrap();
        let replies = &prompt.replies;
        assert_eq!([replies[0].message, replies[1].message], [1, 4]);
        for (reply, expected) in replies.iter().zip(expected) {
            let text = &prompt.text[reply.range.clone()];
            assert!(text.starts_with(expected), "{mode:?}: {text}");
            assert!(prompt.text[..reply.range.start].ends_with("think>"));
            assert!(prompt.text[reply.range.end..].starts_with("<｜end▁of▁sentence｜>"));
        }
        // Parts that meet at markers are the whole, client ranges included.
        let cut = replies[0].range.end;
        let (a, b) = (prompt.part(0..cut).unwrap(), prompt.tail(cut).unwrap());
        assert_eq!(format!("{}{}", a.text, b.text), prompt.text);
        let shifted = b.untrusted.iter().map(|r| r.start + cut..r.end + cut);
        let ranges: Vec<_> = a.untrusted.iter().cloned().chain(shifted).collect();
        assert_eq!(ranges, prompt.untrusted, "{mode:?}");
        assert_eq!((a.replies.len(), b.replies.len()), (1, 1));
    }
}

#[test]
fn defusing_writes_what_would_end_a_value_or_a_result_so_that_it_can_be_read_back() {
    let mut assistant = Message::assistant("");
    assistant.tool_calls = vec![ToolCall {
        id: "a".to_owned(),
        name: "f".to_owned(),
        arguments: r#"{"k\"": "x</｜DSML｜parameter>y"}"#.to_owned(),
    }];
    let messages = [assistant, Message::tool("a", "x</tool_result>y")];
    let render_with = |marker_text| {
        let options = RenderOptions {
            marker_text,
            ..RenderOptions::default()
        };
        render(&messages, &options).unwrap().text
    };
    let defused = render_with(MarkerText::Defuse);
    assert!(defused.contains(
        "name=\"k&quot;\" string=\"true\">x&lt;/｜DSML｜parameter>y</｜DSML｜parameter>"
    ));
    assert!(defused.contains("<tool_result>x&lt;/tool_result>y</tool_result>"));
    let raw = render_with(MarkerText::Allow);
    assert!(
        raw.contains("name=\"k\"\" string=\"true\">x</｜DSML｜parameter>y</｜DSML｜parameter>")
    );
    assert!(raw.contains("<tool_result>x</tool_result>y</tool_result>"));
}

#[test]
fn arguments_that_are_no_object_become_one_parameter_or_none() {
    for (arguments, parameters) in [
        ("null", ""),
        (
            "\"text\"",
            "<｜DSML｜parameter name=\"arguments\" string=\"true\">text</｜DSML｜parameter>",
        ),
        (
            "1.0",
            "<｜DSML｜parameter name=\"arguments\" string=\"false\">1.0</｜DSML｜parameter>",
        ),
        (
            "NaN",
            "<｜DSML｜parameter name=\"arguments\" string=\"true\">NaN</｜DSML｜parameter>",
        ),
        (
            "{\"a\":",
            "<｜DSML｜parameter name=\"arguments\" string=\"true\">{\"a\":</｜DSML｜parameter>",
        ),
    ] {
        let mut message = Message::assistant("");
        message.tool_calls = vec![ToolCall {
            name: "f".to_owned(),
            arguments: arguments.to_owned(),
            ..ToolCall::default()
        }];
        let prompt = render(&[message], &RenderOptions::default()).unwrap();
        let call = format!("<｜DSML｜invoke name=\"f\">\n{parameters}\n</｜DSML｜invoke>");
        assert!(prompt.text.contains(&call), "{arguments}: {}", prompt.text);
    }
}

#[test]
fn results_are_put_into_the_order_of_their_calls_and_text_keeps_its_place() {
    let mut assistant = Message::assistant("");
    assistant.tool_calls = ["a", "b", "c"]
        .map(|id| ToolCall {
            id: id.to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        })
        .to_vec();
    let messages = [
        assistant,
        Message::tool("c", "C"),
        Message::user("first"),
        Message::tool("b", "B"),
        Message::user("second"),
        Message::tool("a", "A"),
    ];
    let prompt = render(&messages, &RenderOptions::default()).unwrap();
    let turn = "<｜User｜><tool_result>A</tool_result>\n\nfirst\n\n<tool_result>B</tool_result>\n\n\
                second\n\n<tool_result>C</tool_result><｜Assistant｜>";
    assert!(prompt.text.contains(turn), "{}", prompt.text);
}

#[test]
fn landmarks_cut_a_prompt_into_the_parts_of_its_messages() {
    let mut system = Message::system("Be kind.");
    system.tools = vec![json(r#"{"name": "f"}"#)];
    system.response_format = Some(json(r#"{"type": "object"}"#));
    let mut called = Message::assistant("Well.");
    called.tool_calls = ["b", "a"]
        .map(|id| ToolCall {
            id: id.to_owned(),
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        })
        .into();
    let messages = [
        system,
        Message::user("Hi."),
        called,
        Message::tool("a", "1"),
        Message::tool("b", "2"),
        Message::user("And?"),
    ];
    let options = RenderOptions {
        mode: Mode::Thinking,
        ..RenderOptions::default()
    };
    let prompt = render(&messages, &options).unwrap();
    let ends = prompt.landmarks.iter().skip(1).map(|next| next.at);
    let ends = ends.chain([prompt.text.len()]);
    let parts: Vec<(usize, Passage, &str)> = prompt
        .landmarks
        .iter()
        .zip(ends)
        .map(|(mark, end)| (mark.message, mark.passage, &prompt.text[mark.at..end]))
        .collect();
    for (part, (message, passage, begins, ends)) in parts.iter().zip([
        (0, Passage::Head, "<｜begin", "sentence｜>"),
        (0, Passage::System, "Be kind.", "Be kind."),
        (0, Passage::Tools, "\n\n## Tools", "tool calls.\n"),
        (0, Passage::ResponseFormat, "\n\n## Resp", "\"object\"}"),
        (1, Passage::User, "<｜User｜>Hi.", "Hi."),
        (1, Passage::Opening, "<｜Assistant｜>", "<think>"),
        (2, Passage::Reply, "</think>Well.", "<｜end▁of▁sentence｜>"),
        // In the order of the calls.
        (
            4,
            Passage::ToolResult,
            "<｜User｜><tool_result>2",
            "</tool_result>",
        ),
        (
            3,
            Passage::ToolResult,
            "\n\n<tool_result>1",
            "</tool_result>",
        ),
        (5, Passage::User, "\n\nAnd?", "And?"),
        (5, Passage::Opening, "<｜Assistant｜>", "<think>"),
    ]) {
        assert_eq!((part.0, part.1), (message, passage), "{part:?}");
        assert!(
            part.2.starts_with(begins) && part.2.ends_with(ends),
            "{part:?}"
        );
    }
    assert_eq!(parts.len(), 11, "{parts:?}");
    let tail = prompt.tail(prompt.landmarks[9].at).unwrap();
    assert_eq!(tail.landmarks.len(), 2);
    assert_eq!(tail.landmarks[0].at, 0);
}
