//! The Messages API: what a request asks for.

mod common;

use ds4_server::api::RequestContext;
use ds4_server::api::messages::{ThinkingDisplay, call_id, parse, token_count, tool_use_id};
use ds4_server::generation::{FailureKind, PromptSource, Thinking, ToolChoice};
use ds4_text::{Effort, Message, Mode, Role};
use serde_json::{Value, json};

const OUR_CALL: &str = "call_0123456789abcdef0123456789abcdef";
const OUR_TOOL_USE: &str = "toolu_0123456789abcdef0123456789abcdef";

/// `body` with what every request has and it does not say.
fn request(body: Value) -> Value {
    let mut whole = json!({
        "model": "deepseek-v4-flash",
        "max_tokens": 32_000,
        "messages": [{"role": "user", "content": "Hello"}],
    });
    for (name, value) in body.as_object().expect("an object") {
        whole[name] = value.clone();
    }
    whole
}

fn messages(body: Value) -> Vec<Message> {
    let parsed = parse(&request(body), &common::context()).expect("a good request");
    match parsed.generation.prompt {
        PromptSource::Messages(messages) => messages,
        PromptSource::Text(_) | PromptSource::Tokens(_) => panic!("a conversation"),
    }
}

fn refusal(body: Value) -> (FailureKind, String) {
    let failure = parse(&request(body), &common::context()).expect_err("a bad request");
    assert!(failure.param.is_some(), "{failure} names its field");
    (failure.kind, failure.message)
}

/// Role and content of every message.
fn outline(messages: &[Message]) -> Vec<(Role, &str)> {
    messages
        .iter()
        .map(|m| (m.role, m.content.as_str()))
        .collect()
}

/// What Claude Code sends on its first turns, in its own shapes, shortened.
fn claude_code() -> Value {
    json!({
        "model": "deepseek-v4-flash",
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329.a1b; cc_entrypoint=cli;"},
            {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Fetch a page.", "cache_control": {"type": "ephemeral"}}]},
            {"role": "system", "content": "The folder is /work. Deferred tools: WebFetch"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "I need a tool.", "signature": "sig-a"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": OUR_TOOL_USE, "name": "ToolSearch", "input": {"query": "web"}},
                {"type": "tool_use", "id": "toolu_foreign", "name": "Bash", "input": {"command": "ls", "timeout": 1.0}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_foreign", "content": "no such file", "is_error": true},
                {"type": "tool_result", "tool_use_id": OUR_TOOL_USE, "content": [{"type": "tool_reference", "tool_name": "WebFetch"}]},
                {"type": "text", "text": "Go on."},
            ]},
        ],
        "tools": [
            {"name": "Bash", "description": "Runs.", "input_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"command": {"type": "string"}}, "additionalProperties": false}},
            {"name": "ToolSearch", "description": "Finds.", "input_schema": {"type": "object", "properties": {}}},
            {"name": "WebFetch", "description": "Fetches.", "input_schema": {"type": "object", "properties": {"url": {"type": "string"}}}, "defer_loading": true},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "metadata": {"user_id": "{\"session_id\":\"s-1\"}"},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "safeguards": [{"type": "dangerous_tool_use"}],
        "stream": true,
    })
}

#[test]
fn a_request_of_claude_code_is_read_whole() {
    let parsed = parse(&claude_code(), &common::context()).expect("a good request");
    let generation = &parsed.generation;
    let PromptSource::Messages(messages) = &generation.prompt else {
        panic!("a conversation");
    };
    assert_eq!(messages[0].role, Role::System);
    assert_eq!(messages[0].content, "You are a coding agent.\n\nBe brief.");
    let shown: Vec<&Value> = messages[0].tools.iter().map(|tool| &tool["name"]).collect();
    assert_eq!(
        shown,
        ["Bash", "ToolSearch"],
        "deferred tools are not in the head"
    );
    let assistant = messages.iter().find(|m| m.role == Role::Assistant).unwrap();
    assert_eq!(assistant.reasoning.as_deref(), Some("I need a tool."));
    assert_eq!(assistant.content, "Looking.");
    assert_eq!(assistant.tool_calls[0].id, OUR_CALL);
    assert_eq!(assistant.tool_calls[1].id, "toolu_foreign");
    assert_eq!(
        assistant.tool_calls[1].arguments,
        r#"{"command": "ls", "timeout": 1.0}"#
    );
    let results: Vec<&Message> = messages.iter().filter(|m| m.role == Role::Tool).collect();
    assert_eq!(
        results[0].tool_call_id, "toolu_foreign",
        "in the order received"
    );
    assert_eq!(results[0].content, "Error: no such file");
    assert_eq!(results[1].tool_call_id, OUR_CALL);
    assert!(
        results[1]
            .content
            .contains(r#"{"name": "WebFetch", "description": "Fetches.", "parameters": "#),
        "a found tool is shown where it was found: {}",
        results[1].content
    );
    let system_text = "The folder is /work. Deferred tools: WebFetch";
    assert!(
        messages[1..]
            .iter()
            .any(|m| m.content.contains(system_text))
    );
    assert_eq!(messages.last().unwrap().content, "Go on.");

    let names: Vec<&str> = generation.tools.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["Bash", "ToolSearch", "WebFetch"]);
    assert_eq!(generation.thinking.mode, Mode::Thinking);
    assert_eq!(generation.thinking.effort, Effort::High);
    assert_eq!(generation.max_tokens, Some(32_000));
    assert_eq!(
        generation.affinity.as_deref(),
        Some("{\"session_id\":\"s-1\"}")
    );
    assert!(generation.stream);
    assert_eq!(parsed.reply.thinking, ThinkingDisplay::Omitted);
    assert_eq!(parsed.turn_handles, ["sig-a"]);
    assert_eq!(parsed.warnings.len(), 2, "{:?}", parsed.warnings);
}

#[test]
fn the_session_header_wins_over_the_user_id() {
    let mut context = common::context();
    context
        .headers
        .insert("x-claude-code-session-id".to_owned(), "s-2".to_owned());
    let parsed = parse(&claude_code(), &context).expect("a good request");
    assert_eq!(parsed.generation.affinity.as_deref(), Some("s-2"));
}

#[test]
fn spellings_of_the_same_conversation_are_read_alike() {
    let text = |text: &str| json!([{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]);
    let pairs = [
        (
            json!({"system": "Be brief."}),
            json!({"system": text("Be brief.")}),
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hello"}]}),
            json!({"messages": [{"role": "user", "content": text("Hello")}]}),
        ),
        (
            json!({"system": "Be brief."}),
            json!({"system": "x-anthropic-billing-header: cch=1\n\nBe brief."}),
        ),
        (
            json!({}),
            json!({"system": text("x-anthropic-billing-header: cch=2")}),
        ),
        (
            json!({"system": "Be brief."}),
            json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]}),
        ),
        (
            json!({"messages": [{"role": "user", "content": text("Hello")}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "Hello"}]}]}),
        ),
    ];
    for (a, b) in pairs {
        assert_eq!(messages(a.clone()), messages(b.clone()), "{a} and {b}");
    }
}

#[test]
fn blocks_become_text() {
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}});
    let cases = [
        (
            json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            "a\n\nb",
        ),
        (
            json!([image]),
            "[image omitted: this model reads text only]",
        ),
        (
            json!([{"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}]),
            "T\nwords",
        ),
        (
            json!([{"type": "document", "title": "T", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}]),
            "T\n[document omitted: this model reads text only]",
        ),
        (
            json!([{"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "words"}, image]}}]),
            "words\n[image omitted: this model reads text only]",
        ),
        (
            json!([{"type": "search_result", "title": "T", "source": "https://example.com", "content": [{"type": "text", "text": "found"}]}]),
            "T\nhttps://example.com\nfound",
        ),
        (
            json!([{"type": "from_the_future", "text": "words"}]),
            "words",
        ),
        (
            json!([{"type": "from_the_future"}]),
            "[from_the_future omitted: this model reads text only]",
        ),
    ];
    for (content, expected) in cases {
        let messages = messages(json!({"messages": [{"role": "user", "content": content}]}));
        assert_eq!(outline(&messages), [(Role::User, expected)], "{content}");
    }
    let result = json!([
        {"role": "user", "content": "Read a.png"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Read", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a.png:"}, image]}]},
    ]);
    let messages = messages(json!({"messages": result}));
    assert_eq!(
        outline(&messages).last(),
        Some(&(
            Role::Tool,
            "a.png:\n\n[image omitted: this model reads text only]"
        ))
    );
}

#[test]
fn an_error_is_marked_once() {
    for (content, expected) in [
        ("not there", "Error: not there"),
        ("Error: not there", "Error: not there"),
        ("ERROR 2", "ERROR 2"),
        ("", "Error: "),
        ("né", "Error: né"),
    ] {
        let messages = messages(json!({"messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Read", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": true}]},
        ]}));
        assert_eq!(messages.last().unwrap().content, expected);
    }
}

#[test]
fn thinking_is_as_hard_as_the_request_says() {
    let on = |effort| (Mode::Thinking, effort, None);
    let off = (Mode::Chat, Effort::None, None);
    let cases = [
        (json!({}), on(Effort::High)),
        (json!({"thinking": {"type": "disabled"}}), off),
        (json!({"thinking": {"type": "adaptive"}}), on(Effort::High)),
        (
            json!({"thinking": {"type": "between_tools"}}),
            on(Effort::High),
        ),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 2048}}),
            (Mode::Thinking, Effort::High, Some(2048)),
        ),
        (json!({"output_config": {"effort": "low"}}), on(Effort::Low)),
        (json!({"output_config": {"effort": "max"}}), on(Effort::Max)),
        (
            json!({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}),
            off,
        ),
        (json!({"model": "claude-haiku-4-5-20251001"}), off),
        (
            json!({"model": "claude-haiku-4-5-20251001", "thinking": {"type": "adaptive"}}),
            on(Effort::High),
        ),
        (
            json!({"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "The answer is"}]}),
            off,
        ),
    ];
    for (body, expected) in cases {
        let parsed = parse(&request(body.clone()), &common::context()).expect("a good request");
        let Thinking {
            mode,
            effort,
            budget,
        } = parsed.generation.thinking;
        assert_eq!((mode, effort, budget), expected, "{body}");
    }
}

#[test]
fn an_answer_that_the_client_began_is_continued() {
    let messages = messages(json!({"messages": [
        {"role": "user", "content": "Say"},
        {"role": "assistant", "content": [{"type": "text", "text": "The answer is ("}]},
    ]}));
    let last = messages.last().unwrap();
    assert!(last.open_ended);
    assert_eq!(last.content, "The answer is (");
}

#[test]
fn tool_choices_are_read() {
    let tools = json!([
        {"name": "book", "input_schema": {"type": "object"}},
        {"type": "custom", "name": "weather", "input_schema": {"type": "object"}},
    ]);
    for (choice, expected, parallel) in [
        (json!(null), ToolChoice::Auto, true),
        (json!({"type": "auto"}), ToolChoice::Auto, true),
        (
            json!({"type": "auto", "disable_parallel_tool_use": true}),
            ToolChoice::Auto,
            false,
        ),
        (json!({"type": "none"}), ToolChoice::None, true),
        (json!({"type": "any"}), ToolChoice::Required(vec![]), true),
        (
            json!({"type": "tool", "name": "book"}),
            ToolChoice::Required(vec!["book".to_owned()]),
            true,
        ),
    ] {
        let body = request(json!({"tools": tools, "tool_choice": choice}));
        let generation = parse(&body, &common::context()).unwrap().generation;
        assert_eq!(generation.tool_choice, expected, "{choice}");
        assert_eq!(generation.parallel_tool_calls, parallel, "{choice}");
    }
}

#[test]
fn the_vendors_client_tools_become_functions() {
    let body = request(json!({"tools": [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250124", "name": "str_replace_editor"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "memory_20250818", "name": "memory"},
        {"type": "code_execution_20250825", "name": "code_execution"},
    ]}));
    let parsed = parse(&body, &common::context()).unwrap();
    let names: Vec<&str> = parsed
        .generation
        .tools
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    let expected = [
        "bash",
        "str_replace_editor",
        "str_replace_based_edit_tool",
        "memory",
    ];
    assert_eq!(names, expected);
    for tool in &parsed.generation.tools {
        assert_eq!(
            tool.function["parameters"]["type"], "object",
            "{}",
            tool.name
        );
    }
    let strict = RequestContext {
        strict_tools: true,
        ..common::context()
    };
    let failure = parse(&body, &strict).expect_err("a hosted tool");
    assert_eq!(failure.kind, FailureKind::Unsupported);
    assert_eq!(failure.param.as_deref(), Some("tools.4.type"));
}

#[test]
fn functions_keep_the_order_of_their_members() {
    let parsed = parse(
        &request(
            json!({"tools": [{"strict": true, "input_schema": {"type": "object"}, "description": "d", "name": "n", "input_examples": []}]}),
        ),
        &common::context(),
    );
    let function = &parsed.unwrap().generation.tools[0].function;
    assert_eq!(
        ds4_text::json::to_string(function),
        r#"{"name": "n", "description": "d", "parameters": {"type": "object"}, "strict": true}"#
    );
}

#[test]
fn a_schema_is_both_shown_and_enforced() {
    let schema = json!({"type": "object", "properties": {"title": {"type": "string"}}});
    let body =
        request(json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}}));
    let generation = parse(&body, &common::context()).unwrap().generation;
    let found = generation.schema.expect("a schema");
    assert_eq!((found.schema, found.strict), (schema.clone(), false));
    assert_eq!(found.place, "output_config.format.schema");
    let PromptSource::Messages(messages) = generation.prompt else {
        panic!("a conversation");
    };
    assert_eq!(messages[0].response_format, Some(schema));
}

#[test]
fn bad_fields_are_named() {
    let tool = json!({"name": "book", "input_schema": {"type": "object"}});
    let cases = [
        (json!({"messages": []}), "messages"),
        (json!({"messages": "Hello"}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": 3}]}),
            "messages.0.content",
        ),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "messages.0.role",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"text": "x"}]}]}),
            "messages.0.content.0.type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}),
            "messages.0.content.0.tool_use_id",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "book", "input": {}}]}]}),
            "messages.0",
        ),
        (json!({"system": 3}), "system"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"stop_sequences": vec!["x"; 17]}), "stop_sequences"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"thinking": {"type": "hard"}}), "thinking.type"),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": "many"}}),
            "thinking.budget_tokens",
        ),
        (
            json!({"output_config": {"effort": "huge"}}),
            "output_config.effort",
        ),
        (
            json!({"output_config": {"format": {"type": "xml"}}}),
            "output_config.format.type",
        ),
        (json!({"tools": [{"name": "book"}]}), "tools.0.input_schema"),
        (json!({"tools": [tool, tool]}), "tools"),
        (
            json!({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}),
            "tools",
        ),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice.type"),
        (
            json!({"tools": [tool], "tool_choice": {"type": "tool", "name": "fly"}}),
            "tool_choice.name",
        ),
        (
            json!({"tools": [tool], "tool_choice": {"type": "often"}}),
            "tool_choice.type",
        ),
    ];
    for (body, place) in cases {
        let (kind, message) = refusal(body.clone());
        assert_eq!(kind, FailureKind::Invalid, "{body}");
        assert!(message.starts_with(place), "{body}: {message}");
    }
    let failure = parse(&json!([]), &common::context()).expect_err("no object");
    assert_eq!(failure.kind, FailureKind::Invalid);
}

#[test]
fn any_model_is_served_unless_the_server_is_strict() {
    let body = request(json!({"model": "claude-opus-4"}));
    let parsed = parse(&body, &common::context()).expect("any name");
    assert_eq!(parsed.reply.model, "claude-opus-4", "the name is echoed");
    let strict = RequestContext {
        strict_models: true,
        ..common::context()
    };
    assert_eq!(
        parse(&body, &strict).expect_err("not ours").kind,
        FailureKind::NotFound
    );
}

#[test]
fn ids_of_calls_go_there_and_back() {
    assert_eq!(tool_use_id(OUR_CALL), OUR_TOOL_USE);
    assert_eq!(call_id(OUR_TOOL_USE), OUR_CALL);
    for foreign in ["toolu_01AbC", "call_x", "", "toolu_"] {
        assert_eq!(call_id(foreign), foreign);
    }
}

#[test]
fn counting_needs_no_limit() {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "foo"}]});
    let parsed = parse(&body, &common::context()).expect("a good request");
    assert_eq!(parsed.generation.max_tokens, Some(393_216));
    assert_eq!(token_count(7), json!({"input_tokens": 7}));
}

#[test]
fn a_request_with_one_bad_node_is_read_or_refused_by_name() {
    let mut n_refused = 0;
    let bodies = common::with_one_node_changed(&claude_code());
    for body in &bodies {
        if let Err(failure) = parse(body, &common::context()) {
            n_refused += 1;
            let is_body = !body.is_object();
            assert!(failure.param.is_some() || is_body, "{failure}: {body}");
        }
    }
    assert!(n_refused > 100 && n_refused < bodies.len(), "{n_refused}");
}
