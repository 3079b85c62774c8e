//! The Chat Completions API: what a request asks for.

mod common;
#[path = "chat/conversation.rs"]
mod conversation;

use std::collections::BTreeMap;

use ds4_server::api::chat::{Parsed, ReasoningDisplay, parse};
use ds4_server::api::{RequestContext, UsageReport};
use ds4_server::generation::{Failure, FailureKind, PromptSource, Thinking, ToolChoice};
use ds4_text::{Effort, Message, Mode, Role, Task};
use serde_json::{Value, json};

/// `body` with what every request has and it does not say.
fn request(body: Value) -> Value {
    let mut whole = json!({
        "model": "deepseek-v4-flash",
        "messages": [{"role": "user", "content": "Hello"}],
    });
    for (name, value) in body.as_object().expect("an object") {
        whole[name] = value.clone();
    }
    whole
}

fn read(body: Value) -> Result<Parsed, Failure> {
    parse(&request(body), &common::context())
}

fn good(body: Value) -> Parsed {
    read(body.clone()).unwrap_or_else(|failure| panic!("{body}: {failure}"))
}

fn messages(messages: Value) -> Vec<Message> {
    match good(json!({"messages": messages})).generation.prompt {
        PromptSource::Messages(messages) => messages,
        PromptSource::Text(_) | PromptSource::Tokens(_) => panic!("a conversation"),
    }
}

fn refused(body: Value, kind: FailureKind, param: &str) {
    let failure = read(body.clone()).expect_err(&body.to_string());
    assert_eq!(failure.kind, kind, "{body}: {failure}");
    assert_eq!(failure.param.as_deref(), Some(param), "{body}: {failure}");
    assert!(failure.message.starts_with(param), "{body}: {failure}");
}

/// Two functions and a custom tool.
fn tools() -> Value {
    json!([
        {"type": "function", "function": {
            "name": "book",
            "strict": true,
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
            "x-unknown": 1.0,
        }},
        {"type": "function", "function": {"name": "weather"}},
        {"type": "custom", "custom": {"name": "apply_patch", "description": "Patches.", "format": {
            "type": "grammar", "grammar": {"syntax": "lark", "definition": "start: \"x\""},
        }}},
    ])
}

#[test]
fn the_reasoning_of_earlier_turns_stays_when_the_publishers_word_for_it_says_so() {
    for (variables, expected) in [
        (json!({}), false),
        (json!({"drop_thinking": true}), false),
        (json!({"drop_thinking": false}), true),
    ] {
        let body = json!({"chat_template_kwargs": variables});
        assert_eq!(
            good(body.clone()).generation.keeps_reasoning,
            expected,
            "{body}"
        );
    }
}

#[test]
fn every_spelling_of_thinking_is_read() {
    let off = Thinking {
        mode: Mode::Chat,
        effort: Effort::None,
        budget: None,
    };
    for body in [
        json!({"thinking": {"type": "disabled"}}),
        json!({"thinking": false}),
        json!({"enable_thinking": false}),
        json!({"think": false}),
        json!({"reasoning_effort": "none"}),
        json!({"reasoning": {"enabled": false}}),
        json!({"reasoning": {"effort": "none"}}),
        json!({"chat_template_kwargs": {"thinking": false}}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"chat_template_kwargs": {"reasoning_effort": "none"}}),
        json!({"output_config": {"effort": "none"}}),
        // Off wins over an effort and over on.
        json!({"think": false, "reasoning_effort": "max"}),
        json!({"enable_thinking": true, "reasoning": {"enabled": false}}),
    ] {
        assert_eq!(good(body.clone()).generation.thinking, off, "{body}");
    }
    let on = |effort, budget| Thinking {
        mode: Mode::Thinking,
        effort,
        budget,
    };
    for (body, expected) in [
        (json!({}), on(Effort::High, None)),
        (
            json!({"thinking": {"type": "enabled"}}),
            on(Effort::High, None),
        ),
        (
            json!({"thinking": {"type": "adaptive", "budget_tokens": 64}}),
            on(Effort::High, Some(64)),
        ),
        (
            json!({"enable_thinking": true, "thinking_budget": 9}),
            on(Effort::High, Some(9)),
        ),
        (json!({"think": "low"}), on(Effort::Low, None)),
        (json!({"think": true}), on(Effort::High, None)),
        (
            json!({"reasoning_effort": "minimal"}),
            on(Effort::Low, None),
        ),
        (json!({"reasoning_effort": "low"}), on(Effort::Low, None)),
        (
            json!({"reasoning_effort": "medium"}),
            on(Effort::High, None),
        ),
        (json!({"reasoning_effort": "xhigh"}), on(Effort::High, None)),
        (
            json!({"reasoning": {"effort": "max", "max_tokens": 7}}),
            on(Effort::Max, Some(7)),
        ),
        (
            json!({"reasoning": {"enabled": true, "max_tokens": 0}}),
            on(Effort::High, None),
        ),
        (
            json!({"chat_template_kwargs": {"reasoning_effort": "ultra"}}),
            on(Effort::Max, None),
        ),
        (
            json!({"output_config": {"effort": "low"}}),
            on(Effort::Low, None),
        ),
    ] {
        assert_eq!(good(body.clone()).generation.thinking, expected, "{body}");
    }
    refused(
        json!({"reasoning_effort": "eager"}),
        FailureKind::Invalid,
        "reasoning_effort",
    );
    refused(
        json!({"thinking": {"type": "maybe"}}),
        FailureKind::Invalid,
        "thinking.type",
    );
    refused(
        json!({"enable_thinking": "yes"}),
        FailureKind::Invalid,
        "enable_thinking",
    );
}

#[test]
fn a_name_stands_for_thinking_where_the_request_says_nothing() {
    let off = Thinking {
        mode: Mode::Chat,
        effort: Effort::None,
        budget: None,
    };
    let context = RequestContext {
        aliases: BTreeMap::from([("deepseek-chat".to_owned(), Some(off))]),
        ..common::context()
    };
    for (model, body, mode) in [
        ("deepseek-chat", json!({}), Mode::Chat),
        ("deepseek-chat", json!({"think": true}), Mode::Thinking),
        ("claude-haiku-4-5-20251001", json!({}), Mode::Chat),
        ("anything", json!({}), Mode::Thinking),
    ] {
        let mut body = request(body);
        body["model"] = model.into();
        let parsed = parse(&body, &context).unwrap();
        assert_eq!(parsed.generation.thinking.mode, mode, "{body}");
        assert_eq!(parsed.reply.envelope.model, model, "the name is echoed");
    }
    let strict = RequestContext {
        strict_models: true,
        ..context
    };
    let failure = parse(&request(json!({"model": "anything"})), &strict).expect_err("not ours");
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[test]
fn sampling_members_have_ranges() {
    let parsed = good(json!({
        "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0, "seed": -1,
        "presence_penalty": -2, "frequency_penalty": 2, "repeat_penalty": 1.5,
        "logit_bias": {"7": -100, "9": 1.5}, "ignore_eos": true,
    }));
    let sampling = parsed.generation.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.min_p),
        (0.0, 0.5, 0.0)
    );
    assert_eq!((sampling.top_k, sampling.seed), (40, Some(u64::MAX)));
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (-2.0, 2.0)
    );
    assert_eq!(sampling.repetition_penalty, 1.5);
    assert_eq!(sampling.logit_bias, [(7, -100.0), (9, 1.5)]);
    assert!(parsed.generation.ignore_eos);
    assert_eq!(good(json!({"top_k": -1})).generation.sampling.top_k, 0);

    for (name, value) in [
        ("temperature", json!(2.01)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(1.5)),
        ("min_p", json!(-0.5)),
        ("seed", json!(1.5)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
        ("repeat_penalty", json!(-1)),
        ("logit_bias", json!({"7": 101})),
        ("logit_bias", json!({"seven": 1})),
        ("max_tokens", json!(-1)),
        ("max_completion_tokens", json!(1.5)),
        ("stop", json!("")),
        ("stop", json!([""])),
        ("stop", json!([7])),
        ("stop", json!(["a".repeat(257)])),
        ("stop", json!(vec!["a"; 17])),
        ("top_logprobs", json!(21)),
        ("n", json!(0)),
        ("n", json!(9)),
    ] {
        let mut body = json!({});
        body[name] = value;
        refused(body, FailureKind::Invalid, name);
    }
    refused(
        json!({"top_logprobs": 2}),
        FailureKind::Invalid,
        "top_logprobs",
    );
}

#[test]
fn limits_and_stop_strings_are_kept() {
    let default = common::context().default_max_tokens;
    for (body, limit) in [
        (json!({}), default),
        (json!({"max_tokens": null}), default),
        (json!({"max_tokens": 0}), 0),
        (json!({"max_tokens": 9_000_000}), 9_000_000),
        (json!({"max_tokens": 5, "max_completion_tokens": 6}), 6),
    ] {
        assert_eq!(
            good(body.clone()).generation.max_tokens,
            Some(limit),
            "{body}"
        );
    }
    assert_eq!(good(json!({"stop": "END"})).generation.stop, ["END"]);
    assert_eq!(
        good(json!({"stop": ["a", "b"]})).generation.stop,
        ["a", "b"]
    );
    assert!(good(json!({"stop": null})).generation.stop.is_empty());
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (name, value) in [
        ("functions", json!([{"name": "book"}])),
        ("function_call", json!("auto")),
        ("audio", json!({"voice": "alloy"})),
        ("modalities", json!(["text", "audio"])),
        ("grammar", json!("root ::= \"a\"")),
        ("guided_regex", json!("a+")),
        ("guided_choice", json!(["a", "b"])),
    ] {
        let mut body = json!({});
        body[name] = value;
        refused(body, FailureKind::Unsupported, name);
    }
    assert_eq!(good(json!({"n": 8})).generation.n_choices, 8);
    good(json!({"n": 1, "modalities": ["text"], "audio": null}));
}

#[test]
fn unknown_members_are_ignored() {
    good(json!({
        "user": "u", "metadata": {"a": 1}, "store": true, "service_tier": "auto",
        "safety_identifier": "s", "prediction": {}, "verbosity": "low",
        "web_search_options": {}, "never_heard_of": [1, {"a": null}],
        "stream_options": {"include_obfuscation": false},
    }));
}

#[test]
fn a_request_may_ask_to_use_no_cache() {
    for (body, expected) in [
        (json!({}), true),
        (json!({"cache_prompt": true}), true),
        (json!({"cache_prompt": false}), false),
    ] {
        assert_eq!(good(body.clone()).generation.use_cache, expected, "{body}");
    }
    refused(
        json!({"cache_prompt": 1}),
        FailureKind::Invalid,
        "cache_prompt",
    );
}

#[test]
fn tools_are_shown_as_they_came() {
    let parsed = good(json!({"tools": tools(), "parallel_tool_calls": false}));
    let generation = parsed.generation;
    assert!(!generation.parallel_tool_calls);
    let names: Vec<&str> = generation.tools.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["book", "weather", "apply_patch"]);
    let PromptSource::Messages(messages) = &generation.prompt else {
        panic!("a conversation");
    };
    let shown = ds4_text::json::to_string(&messages[0].tools[0]);
    let book = r#"{"name": "book", "strict": true, "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}, "x-unknown": 1.0}"#;
    assert_eq!(shown, book, "no member is dropped, added or moved");
    assert_eq!(messages[0].content, "", "tools bring a system message");
    let custom = &messages[0].tools[2];
    assert_eq!(custom["parameters"]["required"], json!(["input"]));
    let description = custom["description"].as_str().unwrap();
    assert!(description.starts_with("Patches.") && description.ends_with("start: \"x\""));
    assert!(parsed.reply.custom_tools.contains("apply_patch"));

    let hosted = json!({"tools": [{"type": "web_search"}]});
    let parsed = good(hosted.clone());
    assert!(parsed.generation.tools.is_empty());
    assert_eq!(parsed.warnings.len(), 1);
    let strict = RequestContext {
        strict_tools: true,
        ..common::context()
    };
    let failure = parse(&request(hosted), &strict).expect_err("strict");
    assert_eq!(failure.param.as_deref(), Some("tools[0].type"));

    for tools in [
        json!([{"type": "function"}]),
        json!([{"type": "function", "function": {"parameters": {}}}]),
        json!([{"type": "function", "function": {"name": "a", "parameters": []}}]),
        json!([{"type": "function", "function": {"name": "a b"}}]),
        json!([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}]),
        json!({"type": "function"}),
    ] {
        let failure = read(json!({"tools": tools})).expect_err(&tools.to_string());
        assert_eq!(failure.kind, FailureKind::Invalid, "{tools}");
        assert!(failure.param.unwrap().starts_with("tools"), "{tools}");
    }
}

#[test]
fn every_form_of_a_tool_choice_is_read() {
    let named = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let book = json!({"type": "function", "function": {"name": "book"}});
    let patch = json!({"type": "custom", "custom": {"name": "apply_patch"}});
    for (choice, expected) in [
        (json!(null), ToolChoice::Auto),
        (json!("auto"), ToolChoice::Auto),
        (json!("none"), ToolChoice::None),
        (json!("required"), ToolChoice::Required(vec![])),
        (json!("any"), ToolChoice::Required(vec![])),
        (json!({"type": "auto"}), ToolChoice::Auto),
        (book.clone(), ToolChoice::Required(named(&["book"]))),
        (patch.clone(), ToolChoice::Required(named(&["apply_patch"]))),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [book, patch]}}),
            ToolChoice::Allowed(named(&["book", "apply_patch"])),
        ),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [book]}}),
            ToolChoice::Required(named(&["book"])),
        ),
    ] {
        let body = json!({"tools": tools(), "tool_choice": choice});
        assert_eq!(good(body).generation.tool_choice, expected, "{choice}");
    }
    let undeclared = json!({"type": "function", "function": {"name": "fly"}});
    for (choice, param) in [
        (json!("perhaps"), "tool_choice"),
        (json!(7), "tool_choice"),
        (undeclared, "tool_choice.function.name"),
        (json!({"type": "web_search"}), "tool_choice.type"),
    ] {
        let body = json!({"tools": tools(), "tool_choice": choice});
        refused(body, FailureKind::Invalid, param);
    }
    refused(
        json!({"tool_choice": "required"}),
        FailureKind::Invalid,
        "tool_choice",
    );
    good(json!({"tool_choice": "auto", "tools": [], "parallel_tool_calls": false}));
}

#[test]
fn structured_output_is_never_ignored() {
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    for body in [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}}}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"json_schema": schema}),
        json!({"guided_json": schema.to_string()}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        let generation = good(body.clone()).generation;
        let found = generation.schema.as_ref().expect("a schema");
        let strict = !body["response_format"]["json_schema"].is_null();
        assert_eq!((&found.schema, found.strict), (&schema, strict), "{body}");
        let PromptSource::Messages(messages) = &generation.prompt else {
            panic!("a conversation");
        };
        assert_eq!(
            messages[0].response_format.as_ref(),
            Some(&schema),
            "{body}"
        );
    }
    let object = good(json!({"response_format": {"type": "json_object"}})).generation;
    let found = object.schema.as_ref().expect("a schema");
    assert_eq!(found.schema, json!({"type": "object"}));
    let PromptSource::Messages(messages) = &object.prompt else {
        panic!("a conversation");
    };
    assert_eq!(messages[0].role, Role::User, "nothing stands in the prompt");
    assert_eq!(
        good(json!({"response_format": {"type": "text"}}))
            .generation
            .schema,
        None
    );
    for (format, param) in [
        (json!({"type": "xml"}), "response_format.type"),
        (
            json!({"type": "json_schema"}),
            "response_format.json_schema",
        ),
        (json!("json"), "response_format"),
    ] {
        refused(
            json!({"response_format": format}),
            FailureKind::Invalid,
            param,
        );
    }
}

#[test]
fn the_shape_of_the_reply_is_read() {
    let plain = good(json!({})).reply;
    assert!(plain.envelope.id.starts_with("chatcmpl-") && plain.envelope.id.len() == 41);
    assert_eq!(plain.envelope.created, common::context().now_unix);
    assert_eq!((plain.usage, plain.logprobs), (UsageReport::None, false));
    let parsed = good(json!({
        "stream": true, "stream_options": {"include_usage": true},
        "logprobs": true, "top_logprobs": 20, "return_progress": true,
        "include_stop_str_in_output": true,
    }));
    assert!(parsed.generation.stream);
    assert_eq!(parsed.generation.n_top_logprobs, Some(20));
    assert_eq!(parsed.reply.usage, UsageReport::OwnChunk);
    assert!(parsed.reply.logprobs && parsed.reply.progress && parsed.reply.shows_stop);
    assert_eq!(
        good(json!({"logprobs": true})).generation.n_top_logprobs,
        Some(0)
    );
    for (body, display) in [
        (json!({}), ReasoningDisplay::ReasoningContent),
        (
            json!({"reasoning_format": "deepseek"}),
            ReasoningDisplay::ReasoningContent,
        ),
        (
            json!({"reasoning_format": "none"}),
            ReasoningDisplay::Inline,
        ),
        (
            json!({"include_reasoning": false}),
            ReasoningDisplay::Hidden,
        ),
        (
            json!({"reasoning": {"exclude": true}}),
            ReasoningDisplay::Hidden,
        ),
    ] {
        assert_eq!(good(body.clone()).reply.reasoning, display, "{body}");
    }
    let context = RequestContext {
        headers: BTreeMap::from([("x-session-id".to_owned(), "s-1".to_owned())]),
        ..common::context()
    };
    let body = request(json!({"prompt_cache_key": "k-1"}));
    let key = |context: &RequestContext| parse(&body, context).unwrap().generation.affinity;
    assert_eq!(key(&context).as_deref(), Some("s-1"));
    assert_eq!(key(&common::context()).as_deref(), Some("k-1"));
}

#[test]
fn an_agents_history_is_read_whole() {
    // What the agents of the chat API send: developer role, null content, echoed reasoning, calls
    // whose results come in another order.
    let found = messages(json!([
        {"role": "developer", "content": "You code."},
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Always."}]},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "ls", "arguments": "{\"a\": 1.0}"}},
            {"id": "call_2", "type": "custom", "custom": {"name": "patch", "input": "a\n\"b\""}},
        ]},
        {"role": "tool", "tool_call_id": "call_2", "content": "done"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}], "reasoning_content": " \n"},
        {"role": "user", "content": "Go on."},
    ]));
    let outline: Vec<(Role, &str)> = found.iter().map(|m| (m.role, m.content.as_str())).collect();
    let omitted = "[image omitted: this model reads text only]";
    assert_eq!(
        outline,
        [
            (Role::System, "You code.\n\nBe brief.\n\nAlways."),
            (Role::User, format!("Look\n\n{omitted}").as_str()),
            (Role::Assistant, ""),
            (Role::Tool, "done"),
            (Role::Tool, format!("x\n\n{omitted}").as_str()),
            (Role::Assistant, "ab"),
            (Role::User, "Go on."),
        ]
    );
    assert_eq!(found[2].reasoning.as_deref(), Some("Hm."));
    assert_eq!(found[5].reasoning, None, "blank reasoning is none");
    let calls = &found[2].tool_calls;
    assert_eq!(
        (calls[0].id.as_str(), calls[0].arguments.as_str()),
        ("call_1", "{\"a\": 1.0}")
    );
    assert_eq!(calls[1].arguments, r#"{"input": "a\n\"b\""}"#);
    assert_eq!(found[3].tool_call_id, "call_2");
}

#[test]
fn reasoning_is_found_under_every_name() {
    for echoed in [
        json!({"reasoning_content": "r"}),
        json!({"reasoning_content": "", "reasoning": "r"}),
        json!({"reasoning": "r"}),
        json!({"reasoning_details": [{"type": "reasoning.text", "text": "r"}]}),
        json!({"reasoning_details": [{"type": "reasoning.summary", "summary": "r"}]}),
    ] {
        let mut turn = json!({"role": "assistant", "content": "a"});
        for (name, value) in echoed.as_object().unwrap() {
            turn[name] = value.clone();
        }
        let found = messages(
            json!([{"role": "user", "content": "u"}, turn, {"role": "user", "content": "v"}]),
        );
        assert_eq!(found[1].reasoning.as_deref(), Some("r"), "{echoed}");
    }
    let history = json!([
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "<think>r</think>a"},
        {"role": "user", "content": "v"},
    ]);
    let inline = good(json!({"reasoning_format": "none", "messages": history}));
    let PromptSource::Messages(found) = inline.generation.prompt else {
        panic!("a conversation");
    };
    assert_eq!(
        (found[1].reasoning.as_deref(), found[1].content.as_str()),
        (Some("r"), "a")
    );
    assert_eq!(
        messages(history)[1].content,
        "<think>r</think>a",
        "only where it was sent so"
    );
}
