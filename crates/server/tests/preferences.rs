//! What the server does where a request, or its API, leaves a choice.

mod common;

use std::borrow::Cow;
use std::time::Duration;

use ds4_server::api::messages::ThinkingDisplay;
use ds4_server::api::{
    CallPieces, CallWriter, CompletionsPrompt, Media, Ping, Preferences, RequestContext,
    UsageReport, chat, completions, messages, responses,
};
use ds4_server::generation::{FailureKind, PromptSource, ReplyEvent, Thinking};
use ds4_text::{Effort, Mode, Role};
use serde_json::{Value, json};

use common::read_frames;

fn preferring(preferences: Preferences) -> RequestContext {
    RequestContext {
        preferences,
        ..common::context()
    }
}

fn chat_with(mut body: Value, context: &RequestContext) -> chat::Parsed {
    body["messages"] = json!([{"role": "user", "content": "hi"}]);
    chat::parse(&body, context).unwrap_or_else(|e| panic!("{body}: {e}"))
}

#[test]
fn a_request_that_says_where_reasoning_goes_wins_over_the_server() {
    use chat::ReasoningDisplay::*;
    for default in [ReasoningContent, Reasoning, Both, Inline, Hidden] {
        let context = preferring(Preferences {
            chat_reasoning: default,
            ..Preferences::default()
        });
        for (body, expected) in [
            (json!({}), default),
            (json!({"reasoning_format": "auto"}), default),
            (json!({"reasoning_format": "deepseek"}), ReasoningContent),
            (json!({"reasoning_format": "none"}), Inline),
            (json!({"include_reasoning": false}), Hidden),
            (json!({"reasoning": {"exclude": true}}), Hidden),
        ] {
            let found = chat_with(body.clone(), &context).reply.reasoning;
            assert_eq!(found, expected, "{default:?} {body}");
        }
    }
    use responses::ReasoningDisplay as Display;
    for default in [Display::Summary, Display::Text, Display::Hidden] {
        let context = preferring(Preferences {
            responses_reasoning: default,
            ..Preferences::default()
        });
        for (reasoning, expected) in [
            (Value::Null, default),
            (json!({"effort": "low"}), default),
            (json!({"summary": "auto"}), Display::Summary),
            (json!({"summary": "none"}), Display::Text),
        ] {
            let body = json!({"input": "hi", "reasoning": reasoning});
            let found = responses::parse(&body, &context).unwrap().reply.reasoning;
            assert_eq!(found, expected, "{default:?} {body}");
        }
    }
}

#[test]
fn messages_may_think_by_a_default_of_their_own() {
    let off = Thinking {
        mode: Mode::Chat,
        effort: Effort::None,
        budget: None,
    };
    let low = Thinking {
        mode: Mode::Thinking,
        effort: Effort::Low,
        budget: Some(9),
    };
    let body = |thinking: Value| {
        json!({
            "model": "m", "thinking": thinking,
            "messages": [{"role": "user", "content": "hi"}],
        })
    };
    let read = |default: Option<Thinking>, thinking: Value| {
        let context = preferring(Preferences {
            messages_thinking: default,
            ..Preferences::default()
        });
        let parsed = messages::parse(&body(thinking), &context).unwrap();
        parsed.generation.thinking
    };
    let usual = common::context().default_thinking;
    assert_eq!(read(None, Value::Null), usual);
    assert_eq!(read(Some(off), Value::Null), off);
    assert_eq!(read(Some(low), Value::Null), low);
    assert_eq!(
        read(Some(low), json!({"type": "disabled"})).mode,
        Mode::Chat
    );
    let asked = read(Some(off), json!({"type": "adaptive"}));
    assert_eq!(asked.mode, Mode::Thinking);
    let context = preferring(Preferences {
        messages_thinking: Some(off),
        ..Preferences::default()
    });
    let elsewhere = chat_with(json!({}), &context).generation.thinking;
    assert_eq!(elsewhere, usual, "the other APIs keep theirs");

    let hiding = preferring(Preferences {
        hides_default_thinking: true,
        ..Preferences::default()
    });
    for (thinking, expected) in [
        (Value::Null, ThinkingDisplay::Hidden),
        (json!({"type": "enabled"}), ThinkingDisplay::Shown),
        (
            json!({"type": "adaptive", "display": "omitted"}),
            ThinkingDisplay::Omitted,
        ),
    ] {
        let parsed = messages::parse(&body(thinking.clone()), &hiding).unwrap();
        assert_eq!(parsed.reply.thinking, expected, "{thinking}");
        assert_eq!(parsed.generation.thinking.mode, Mode::Thinking);
    }
}

#[test]
fn usage_is_told_unasked_in_the_last_chunk_with_a_choice() {
    let context = preferring(Preferences {
        always_usage: true,
        ..Preferences::default()
    });
    let asked = json!({"stream_options": {"include_usage": true}});
    assert_eq!(
        chat_with(json!({}), &context).reply.usage,
        UsageReport::LastChoice
    );
    assert_eq!(
        chat_with(asked, &context).reply.usage,
        UsageReport::OwnChunk
    );
    let text = completions::parse(&json!({"prompt": "a"}), &context).unwrap();
    assert_eq!(text.reply.usage, UsageReport::LastChoice);
}

#[test]
fn lines_for_accounting_stay_where_they_are_wanted() {
    let body = json!({
        "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
                   {"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": "hi"}],
    });
    for (keeps, expected) in [
        (false, "Be brief."),
        (true, "x-anthropic-billing-header: cch=1;\n\nBe brief."),
    ] {
        let context = preferring(Preferences {
            keeps_client_headers: keeps,
            ..Preferences::default()
        });
        let parsed = messages::parse(&body, &context).unwrap();
        let PromptSource::Messages(found) = parsed.generation.prompt else {
            panic!("a conversation");
        };
        assert_eq!(found[0].content, expected);
    }
}

/// A conversation of each API with an image in what the user says, or in a tool's result.
fn conversations_with_an_image(in_result: bool) -> [(&'static str, Value); 3] {
    let url = "data:image/png;base64,AA==";
    let chat_image = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let block = json!([{"type": "image", "source": {"type": "base64", "data": "AA=="}}]);
    let part = json!([{"type": "input_image", "image_url": url}]);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    if in_result {
        return [
            (
                "chat",
                json!({"messages": [
                    {"role": "user", "content": "look"},
                    {"role": "assistant", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "c", "content": chat_image},
                ]}),
            ),
            (
                "messages",
                json!({"messages": [
                    {"role": "user", "content": "look"},
                    {"role": "assistant", "content": [
                        {"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": block}]},
                ]}),
            ),
            (
                "responses",
                json!({"input": [
                    {"role": "user", "content": "look"},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": part},
                ]}),
            ),
        ];
    }
    [
        (
            "chat",
            json!({"messages": [{"role": "user", "content": chat_image}]}),
        ),
        (
            "messages",
            json!({"messages": [{"role": "user", "content": block}]}),
        ),
        (
            "responses",
            json!({"input": [{"role": "user", "content": part}]}),
        ),
    ]
}

#[test]
fn images_are_named_or_refused_but_never_refused_in_a_tools_result() {
    for media in [Media::Placeholder, Media::Refuse] {
        let context = preferring(Preferences {
            media,
            ..Preferences::default()
        });
        for in_result in [false, true] {
            for (api, body) in conversations_with_an_image(in_result) {
                let read = match api {
                    "chat" => chat::parse(&body, &context).map(|p| p.generation),
                    "messages" => messages::parse(&body, &context).map(|p| p.generation),
                    _ => responses::parse(&body, &context).map(|p| p.generation),
                };
                if media == Media::Refuse && !in_result {
                    let failure = read.expect_err(api);
                    assert_eq!(failure.kind, FailureKind::UnsupportedContent, "{api}");
                    assert!(failure.param.is_some(), "{api}");
                    continue;
                }
                let PromptSource::Messages(found) = read.expect(api).prompt else {
                    panic!("a conversation");
                };
                let last = found.last().expect("messages");
                assert!(last.content.contains("[image omitted"), "{api}: {last:?}");
            }
        }
    }
}

#[test]
fn a_sign_of_life_is_a_comment_or_a_chunk_that_adds_nothing() {
    let idle = Duration::from_secs(5);
    for ping in [Ping::Comment, Ping::Chunk] {
        let context = preferring(Preferences {
            ping,
            ..Preferences::default()
        });
        let mut chat = chat::Stream::new(chat_with(json!({}), &context).reply);
        let text = completions::parse(&json!({"prompt": "a"}), &context).unwrap();
        let mut text = completions::Stream::new(text.reply);
        for (frames, empty) in [
            (chat.keep_alive(idle), ("/delta", json!({}))),
            (text.keep_alive(idle), ("/text", json!(""))),
        ] {
            if ping == Ping::Comment {
                assert!(frames[0].0.starts_with(b": "), "{frames:?}");
                continue;
            }
            let chunk = &read_frames(&frames)[0].data;
            let choice = &chunk["choices"][0];
            assert_eq!(choice.pointer(empty.0), Some(&empty.1), "{chunk}");
            assert!(choice["finish_reason"].is_null(), "{chunk}");
        }
    }
}

#[test]
fn a_call_in_one_go_is_the_call_that_its_pieces_add_up_to() {
    for (name, script) in common::scripts() {
        let passed = |pieces: CallPieces| -> Vec<ReplyEvent> {
            let mut writer = CallWriter::new(pieces);
            let events = script.events.iter();
            let passed = events.flat_map(|event| writer.pass(event));
            passed.map(Cow::into_owned).collect()
        };
        assert_eq!(passed(CallPieces::Delta), script.events, "{name}");
        let whole = passed(CallPieces::Whole);
        // Arguments by call, and the pieces they came in.
        let arguments = |events: &[ReplyEvent]| {
            let mut calls: Vec<(String, usize)> = Vec::new();
            for event in events {
                match event {
                    ReplyEvent::ToolStart { .. } => calls.push((String::new(), 0)),
                    ReplyEvent::ToolArguments { index, text } => {
                        calls[*index].0.push_str(text);
                        calls[*index].1 += 1;
                    }
                    _ => {}
                }
            }
            calls
        };
        let (pieces, whole_calls) = (arguments(&script.events), arguments(&whole));
        assert!(whole_calls.iter().all(|(_, n)| *n <= 1), "{name}");
        let texts = |calls: &[(String, usize)]| -> Vec<String> {
            calls.iter().map(|(text, _)| text.clone()).collect()
        };
        let n_whole = match script.events.last() {
            // A call that fails is never begun.
            Some(ReplyEvent::Failed(_)) => {
                script.outcome.calls.iter().filter(|c| c.complete).count()
            }
            _ => pieces.len(),
        };
        assert_eq!(texts(&whole_calls), texts(&pieces)[..n_whole], "{name}");
        assert_eq!(whole.last(), script.events.last(), "{name}");
    }
}

#[test]
fn text_completions_have_a_limit_and_a_mode_of_their_own() {
    let context = preferring(Preferences {
        completions_max_tokens: Some(16),
        completions_prompt: CompletionsPrompt::Chat,
        ..Preferences::default()
    });
    let read = |body: Value| completions::parse(&body, &context);
    let parsed = read(json!({"prompt": "hi"})).unwrap();
    assert_eq!(parsed.generation.max_tokens, Some(16));
    let PromptSource::Messages(found) = parsed.generation.prompt else {
        panic!("a conversation");
    };
    assert_eq!(
        found.iter().map(|m| m.role).collect::<Vec<_>>(),
        [Role::System, Role::User]
    );
    assert_eq!(found[1].content, "hi");
    let asked = read(json!({"prompt": "hi", "max_tokens": 3})).unwrap();
    assert_eq!(asked.generation.max_tokens, Some(3));
    for body in [
        json!({"prompt": "hi", "suffix": "x"}),
        json!({"prompt": [1, 2]}),
    ] {
        let failure = read(body.clone()).expect_err(&body.to_string());
        assert_eq!(failure.kind, FailureKind::Unsupported, "{body}");
    }
    let raw = completions::parse(&json!({"prompt": [1, 2]}), &common::context()).unwrap();
    assert_eq!(raw.generation.prompt, PromptSource::Tokens(vec![1, 2]));
    assert_eq!(
        raw.generation.max_tokens,
        Some(common::context().default_max_tokens)
    );
}
