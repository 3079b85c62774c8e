//! Rendering and reading undo each other, and a growing conversation keeps its prefix.

mod common;

use common::cases;
use ds4_text::{
    EndReason, MarkerText, Message, Mode, RenderOptions, ReplyParser, Start, ToolCall, ToolSchemas,
    json, parse_strict, render,
};
use proptest::prelude::*;
use serde_json::{Map, Value};

const EOS: &str = "<｜end▁of▁sentence｜>";

fn tools() -> ToolSchemas {
    let schema = json::parse(r#"{"type": "object", "properties": {}}"#).unwrap();
    [("lookup".to_owned(), schema)].into_iter().collect()
}

/// Text that looks like markup without being any: nothing in it closes a tag.
fn prose() -> impl Strategy<Value = String> {
    let parts: Vec<&'static str> = vec![
        "a",
        "Why",
        " ",
        "\n",
        "\n\n",
        "<",
        "</",
        "<｜",
        "DSML",
        "<｜DSML｜",
        "｜",
        "think",
        "tool_call",
        "invoke",
        "&lt;",
        "\"",
        "\\",
        "é",
        "😀",
        "\u{0}",
        "\t",
        "=",
        "<tool_result",
    ];
    prop::collection::vec(prop::sample::select(parts), 0..12).prop_map(|parts| parts.concat())
}

/// Any text, with what must be escaped in it or not.
fn value_text() -> impl Strategy<Value = String> {
    (prose(), any::<String>(), prop::bool::ANY).prop_map(|(prose, any, closes)| {
        // The closing tag of a parameter is escaped; an already escaped one cannot be told apart.
        let middle = if closes {
            "</｜DSML｜parameter>"
        } else {
            ">"
        };
        format!("{prose}{middle}{}", any.replace("&lt;/", ""))
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |x| x.is_finite().then(|| Value::from(x))),
        prose().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prose(), inner), 0..4).prop_map(object),
        ]
    })
}

fn object(members: Vec<(String, Value)>) -> Value {
    Value::from(members.into_iter().collect::<Map<_, _>>())
}

fn call() -> impl Strategy<Value = ToolCall> {
    let argument = prop_oneof![value(), value_text().prop_map(Value::from)];
    let arguments = prop::collection::vec(("[a-z\"'<>= /]{0,6}", argument), 0..4);
    ("[A-Za-z0-9_.:/-]{1,12}", arguments).prop_map(|(name, arguments)| ToolCall {
        id: String::new(),
        name,
        arguments: json::to_string(&object(arguments)),
    })
}

fn assistant() -> impl Strategy<Value = Message> {
    let calls = prop::collection::vec(call(), 0..4);
    (prose(), prose(), calls).prop_map(|(reasoning, content, tool_calls)| Message {
        reasoning: Some(reasoning),
        tool_calls,
        ..Message::assistant(content)
    })
}

fn options(mode: Mode) -> RenderOptions {
    RenderOptions {
        mode,
        drop_thinking: false,
        ..RenderOptions::default()
    }
}

/// The bytes that the model would have written for this turn, its end marker included.
fn completion(message: &Message, options: &RenderOptions) -> String {
    let user = [Message::user("x")];
    let prompt = render(&user, options).unwrap().text;
    let turn = render(&[user[0].clone(), message.clone()], options)
        .unwrap()
        .text;
    let rest = turn.strip_prefix(&prompt);
    rest.expect("a turn continues the prompt").to_owned()
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_rendered_reply_reads_back_as_itself(message in assistant(), thinking in any::<bool>()) {
        let (mode, start) = match thinking {
            true => (Mode::Thinking, Start::Reasoning),
            false => (Mode::Chat, Start::Content),
        };
        let message = match thinking {
            true => message,
            false => Message { reasoning: Some(String::new()), ..message },
        };
        let text = completion(&message, &options(mode));
        let mut parser = ReplyParser::new(start, tools());
        parser.push(text.strip_suffix(EOS).unwrap());
        let (_, reply) = parser.finish(EndReason::Stop);
        prop_assert_eq!(&reply.malformed, &None, "{}", text);
        prop_assert_eq!(&reply.reasoning, message.reasoning.as_ref().unwrap(), "{}", text);
        prop_assert_eq!(&reply.content, &message.content, "{}", text);
        let read = reply.tool_calls.iter().map(|call| {
            assert!(call.complete, "{text}");
            (&call.name, &call.arguments)
        });
        let written = message.tool_calls.iter().map(|call| (&call.name, &call.arguments));
        prop_assert!(read.clone().eq(written), "{:?} from {}", reply.tool_calls, text);

        let again = Message {
            reasoning: Some(reply.reasoning.clone()),
            tool_calls: read
                .map(|(name, arguments)| ToolCall {
                    id: String::new(),
                    name: name.clone(),
                    arguments: arguments.clone(),
                })
                .collect(),
            ..Message::assistant(reply.content.clone())
        };
        prop_assert_eq!(completion(&again, &options(mode)), text.clone());

        // Where nothing had to be escaped and no marker is in the prose, the official grammar
        // gives the same.
        let raw = RenderOptions { marker_text: MarkerText::Allow, ..options(mode) };
        if completion(&message, &raw) == text && let Ok(strict) = parse_strict(&text, thinking) {
            prop_assert_eq!(strict, reply);
        }
    }

    /// What is rendered for one request, up to and including its generation prompt, begins the
    /// rendering of the next, so that cached state can be continued. Holds wherever reasoning is
    /// kept: in chat mode, with tools, and with `drop_thinking` off.
    #[test]
    fn a_growing_conversation_keeps_its_prefix(
        turns in prop::collection::vec((prose(), assistant(), prose()), 1..5),
        (mode, has_tools, drop_thinking) in prop::sample::select(vec![
            (Mode::Chat, false, true),
            (Mode::Thinking, false, false),
            (Mode::Thinking, true, true),
        ]),
    ) {
        let options = RenderOptions { drop_thinking, ..options(mode) };
        let mut system = Message::system("S.");
        if has_tools {
            system.tools = vec![json::parse(r#"{"name": "lookup"}"#).unwrap()];
        }
        let mut messages = vec![system];
        let mut requests = Vec::new();
        for (question, answer, result) in turns {
            let n_calls = answer.tool_calls.len();
            messages.push(Message::user(question));
            requests.push(messages.clone());
            messages.push(answer);
            if n_calls > 0 {
                messages.extend((0..n_calls).map(|_| Message::tool("", result.clone())));
                requests.push(messages.clone());
                messages.push(Message::assistant("done"));
            }
        }
        let mut before = String::new();
        for request in requests {
            let prompt = render(&request, &options).unwrap().text;
            prop_assert!(prompt.starts_with(&before), "{:?} then {:?}", before, prompt);
            before = prompt;
        }
    }
}

/// The one kind of conversation whose prefix changes: without tools, thinking, reasoning dropped.
#[test]
fn dropped_reasoning_changes_the_prefix_from_the_answered_question_on() {
    let answer = Message {
        reasoning: Some("Because.".to_owned()),
        ..Message::assistant("A")
    };
    let messages = [Message::user("Q"), answer, Message::user("R")];
    let options = RenderOptions {
        mode: Mode::Thinking,
        ..RenderOptions::default()
    };
    let first = render(&messages[..1], &options).unwrap().text;
    let second = render(&messages, &options).unwrap().text;
    assert!(first.ends_with("<｜User｜>Q<｜Assistant｜><think>"));
    let kept = first.strip_suffix("<think>").unwrap();
    assert!(second.starts_with(&format!("{kept}</think>A")), "{second}");
    assert!(!second.contains("Because."));
}
