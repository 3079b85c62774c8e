//! The Responses API: what a request asks for, and what is stored.

mod common;

use std::sync::Arc;

use ds4_server::api::RequestContext;
use ds4_server::api::responses::{
    MAX_AGE_S, MemoryStore, Parsed, ReasoningDisplay, ResponseStore, StoredResponse, complete,
    deleted, flat_name, input_items, parse, parse_with_store, token_count,
};
use ds4_server::generation::{FailureKind, Finish, PromptSource, ToolChoice};
use ds4_server::memory;
use ds4_text::{Effort, Message, Mode, Role};
use serde_json::{Value, json};

use common::Writer;

fn parsed(body: &Value) -> Parsed {
    parse(body, &common::context()).unwrap_or_else(|failure| panic!("{body}: {failure}"))
}

fn messages(parsed: &Parsed) -> &[Message] {
    match &parsed.generation.prompt {
        PromptSource::Messages(messages) => messages,
        PromptSource::Text(_) | PromptSource::Tokens(_) => panic!("a conversation"),
    }
}

/// A message in one line: role, reasoning, content and calls.
fn line(message: &Message) -> String {
    let mut line = format!("{:?}", message.role).to_lowercase();
    if let Some(reasoning) = &message.reasoning {
        line.push_str(&format!(" <{}>", reasoning.escape_debug()));
    }
    line.push_str(&format!(" {}", message.content.escape_debug()));
    for call in &message.tool_calls {
        line.push_str(&format!(" {}={}{}", call.id, call.name, call.arguments));
    }
    if message.role == Role::Tool {
        line.push_str(&format!(" for {}", message.tool_call_id));
    }
    line
}

fn lines(input: Value) -> Vec<String> {
    messages(&parsed(&json!({"input": input})))
        .iter()
        .map(line)
        .collect()
}

/// What Codex sends after a call of its first turn, in its own shapes, shortened.
fn codex() -> Value {
    let function = |name: &str| json!({"type": "function", "name": name, "description": "d", "strict": false, "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}});
    json!({
        "model": "deepseek-v4-flash",
        "input": [
            {"type": "message", "id": "m1", "role": "developer", "content": [{"type": "input_text", "text": "You are Codex."}]},
            {"type": "message", "id": "m2", "role": "developer", "content": [{"type": "input_text", "text": "Sandbox off."}]},
            {"type": "message", "id": "m3", "role": "user", "content": [{"type": "input_text", "text": "Folder /work"}]},
            {"type": "message", "id": "m4", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look first."}], "content": null, "encrypted_content": "turn-7"},
            {"type": "message", "id": "m5", "role": "assistant", "content": [{"type": "output_text", "text": "Look"}, {"type": "output_text", "text": "ing."}]},
            {"type": "function_call", "call_id": "call_1", "name": "exec_command", "arguments": "{\"cmd\":\"ls\"}"},
            {"type": "function_call", "call_id": "call_2", "name": "spawn_agent", "namespace": "multi_agent_v1", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "call_3", "name": "apply_patch", "input": "*** Begin\n", "status": "completed"},
            {"type": "function_call_output", "call_id": "call_2", "output": "spawned"},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "a.png"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
            {"type": "custom_tool_call_output", "call_id": "call_3", "output": "done"},
        ],
        "tools": [
            function("exec_command"),
            {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}},
            {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [function("spawn_agent")]},
            {"type": "namespace", "name": "mcp__docs__", "description": "Docs.", "tools": [function("read")]},
            {"type": "web_search"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": true,
        "reasoning": {"summary": "auto"},
        "store": false,
        "stream": true,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "s-1",
        "client_metadata": {"x": 1},
    })
}

#[test]
fn a_request_of_codex_is_read_whole() {
    let parsed = parsed(&codex());
    let lines: Vec<String> = messages(&parsed).iter().map(line).collect();
    assert_eq!(
        lines,
        [
            r"system You are Codex.\n\nSandbox off.",
            "user Folder /work",
            "user Fix it.",
            r#"assistant <Look first.> Looking. call_1=exec_command{"cmd":"ls"} call_2=multi_agent_v1__spawn_agent{} call_3=apply_patch{"input": "*** Begin\n"}"#,
            "tool spawned for call_2",
            r"tool a.png\n\n[image omitted: this model reads text only] for call_1",
            "tool done for call_3",
        ]
    );
    let generation = &parsed.generation;
    let names: Vec<&str> = generation.tools.iter().map(|t| t.name.as_str()).collect();
    let expected = [
        "exec_command",
        "apply_patch",
        "multi_agent_v1__spawn_agent",
        "mcp__docs__read",
    ];
    assert_eq!(names, expected);
    assert_eq!(messages(&parsed)[0].tools.len(), 4);
    assert_eq!(
        ds4_text::json::to_string(&generation.tools[1].function),
        r#"{"name": "apply_patch", "description": "Patches.\n\nThe input follows this lark grammar:\nstart: \"x\"", "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}}"#
    );
    assert_eq!(generation.thinking.mode, Mode::Thinking);
    assert_eq!(generation.max_tokens, Some(393_216));
    assert_eq!(generation.affinity.as_deref(), Some("s-1"));
    assert!(generation.stream && generation.parallel_tool_calls);
    assert_eq!(parsed.reply.reasoning, ReasoningDisplay::Summary);
    assert!(parsed.reply.encrypted_content.is_some());
    assert_eq!(
        parsed.reply.echo["tools"],
        codex()["tools"],
        "tools are echoed"
    );
    assert_eq!(parsed.turn_handles, ["turn-7"]);
    assert!(!parsed.store);
    assert_eq!(parsed.input.len(), 12);
    assert!(parsed.reply.id.starts_with("resp_") && parsed.reply.id.len() == 53);
}

#[test]
fn items_become_turns() {
    let user = json!({"role": "user", "content": "Hi"});
    let again = json!({"role": "user", "content": "Go on"});
    let cases = [
        (json!("Hi"), vec!["user Hi"]),
        (json!([user]), vec!["user Hi"]),
        // A reasoning item behind a call begins a turn, which is merged with the one before.
        (
            json!([user,
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}, {"type": "reasoning_text", "text": "b"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "c"}]},
                {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "2", "output": "y"},
                {"type": "function_call_output", "call_id": "1", "output": "x"}]),
            vec![
                "user Hi",
                r"assistant <a\nb\nc>  1=f{} 2=f{}",
                "tool y for 2",
                "tool x for 1",
            ],
        ),
        // Of reasoning both as text and as summary the text counts; of neither nothing is left.
        (
            json!([user,
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": [{"type": "reasoning_text", "text": "long"}]},
                {"role": "assistant", "content": "Yes"}, again,
                {"type": "reasoning", "summary": [], "encrypted_content": "turn-1"}, again]),
            vec![
                "user Hi",
                "assistant <long> Yes",
                "user Go on",
                "user Go on",
            ],
        ),
        (
            json!([user,
                {"type": "message", "role": "assistant", "status": "incomplete", "content": [{"type": "refusal", "refusal": "No"}]},
                {"role": "assistant", "content": "Yes"}, again]),
            vec!["user Hi", r"assistant No\n\nYes", "user Go on"],
        ),
        (
            json!([user,
                {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "weather"}},
                {"type": "mcp_call", "id": "x", "name": "read", "arguments": "{}", "output": "text", "server_label": "s"},
                {"role": "assistant", "content": "Sun"}, again]),
            vec![
                "user Hi",
                r"assistant [web_search_call] weather\n\n[mcp_call] read {} text\n\nSun",
                "user Go on",
            ],
        ),
        (
            json!([user,
                {"type": "local_shell_call", "call_id": "1", "action": {"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": null}},
                {"type": "local_shell_call_output", "id": "1", "call_id": "1", "output": "a"},
                {"type": "shell_call", "call_id": "2", "action": {"commands": ["ls"]}},
                {"type": "shell_call_output", "call_id": "2", "output": [{"stdout": "a", "stderr": ""}]},
                {"type": "apply_patch_call", "call_id": "3", "operation": {"type": "delete_file", "path": "a"}},
                {"type": "apply_patch_call_output", "call_id": "3", "status": "completed"}]),
            vec![
                "user Hi",
                r#"assistant  1=local_shell{"command": ["ls"]}"#,
                "tool a for 1",
                r#"assistant  2=shell{"commands": ["ls"]}"#,
                r#"tool [{\"stdout\": \"a\", \"stderr\": \"\"}] for 2"#,
                r#"assistant  3=apply_patch{"type": "delete_file", "path": "a"}"#,
                "tool  for 3",
            ],
        ),
        (
            json!([{"role": "user", "content": [{"type": "input_text", "text": "Read"}, {"type": "input_file", "filename": "a.pdf", "file_data": "AAAA"}]}]),
            vec![r"user Read\n\na.pdf [file omitted: this model reads text only]"],
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(lines(input.clone()), expected, "{input}");
    }
}

#[test]
fn tools_that_come_later_are_shown_where_they_come() {
    let body = json!({
        "input": [
            {"role": "user", "content": "Hi"},
            {"type": "additional_tools", "role": "developer", "tools": [{"type": "function", "name": "fly", "parameters": {"type": "object"}}]},
            {"role": "user", "content": "Fly"},
        ],
        "tools": [{"type": "function", "name": "book"}],
    });
    let parsed = parsed(&body);
    assert_eq!(messages(&parsed)[0].tools.len(), 1);
    let text: String = messages(&parsed)
        .iter()
        .map(|m| m.content.as_str())
        .collect();
    assert!(
        text.contains(r#"{"name": "fly", "parameters": {"type": "object"}}"#),
        "{text}"
    );
    let names: Vec<&str> = parsed
        .generation
        .tools
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    assert_eq!(names, ["book", "fly"]);
}

#[test]
fn instructions_are_the_first_system_text() {
    let body = json!({"instructions": "First.", "input": [{"role": "developer", "content": "Then."}, {"role": "user", "content": "Hi"}]});
    assert_eq!(
        line(&messages(&parsed(&body))[0]),
        r"system First.\n\nThen."
    );
}

#[test]
fn wishes_are_read() {
    let with = |members: Value| {
        let mut body = json!({"input": "Hi", "tools": [
            {"type": "function", "name": "book"},
            {"type": "custom", "name": "patch"},
            {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "inner"}]},
            {"type": "local_shell"},
        ]});
        for (name, value) in members.as_object().expect("an object") {
            body[name] = value.clone();
        }
        parsed(&body)
    };
    let thinking = |members| with(members).generation.thinking;
    assert_eq!(thinking(json!({})).effort, Effort::High);
    assert_eq!(
        thinking(json!({"reasoning": {"effort": "low"}})).effort,
        Effort::Low
    );
    assert_eq!(
        thinking(json!({"reasoning": {"effort": "none"}})).mode,
        Mode::Chat
    );
    assert_eq!(thinking(json!({"model": "gpt-5-mini"})).mode, Mode::Chat);
    assert_eq!(thinking(json!({"model": "gemini"})).mode, Mode::Thinking);
    assert_eq!(
        thinking(json!({"reasoning": {"max_tokens": 64}})).budget,
        Some(64)
    );

    let name = |text: &str| text.to_owned();
    for (choice, expected) in [
        (json!("auto"), ToolChoice::Auto),
        (json!("none"), ToolChoice::None),
        (json!("required"), ToolChoice::Required(vec![])),
        (
            json!({"type": "function", "name": "book"}),
            ToolChoice::Required(vec![name("book")]),
        ),
        (
            json!({"type": "custom", "name": "patch"}),
            ToolChoice::Required(vec![name("patch")]),
        ),
        (
            json!({"type": "function", "namespace": "ns", "name": "inner"}),
            ToolChoice::Required(vec![name("ns__inner")]),
        ),
        (
            json!({"type": "function", "name": "inner"}),
            ToolChoice::Required(vec![name("ns__inner")]),
        ),
        (
            json!({"type": "local_shell"}),
            ToolChoice::Required(vec![name("local_shell")]),
        ),
        (
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "book"}, {"type": "web_search"}]}),
            ToolChoice::Allowed(vec![name("book")]),
        ),
        (
            json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}]}),
            ToolChoice::Required(vec![name("patch")]),
        ),
        (
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}),
            ToolChoice::None,
        ),
    ] {
        let parsed = with(json!({"tool_choice": choice}));
        assert_eq!(parsed.generation.tool_choice, expected, "{choice}");
        assert_eq!(parsed.reply.echo["tool_choice"], choice);
    }

    let schema = json!({"type": "object"});
    let format = |format: Value| with(json!({"text": {"format": format}}));
    let strict =
        format(json!({"type": "json_schema", "name": "t", "strict": true, "schema": schema}));
    let found = strict.generation.schema.as_ref().expect("a schema");
    assert_eq!(found.schema, schema);
    assert_eq!(found.place, "text.format.schema");
    assert_eq!(messages(&strict)[0].response_format, Some(schema.clone()));
    let object = format(json!({"type": "json_object"}));
    let found = object.generation.schema.as_ref().expect("a schema");
    assert_eq!(found.schema, schema);
    assert_eq!(messages(&object)[0].response_format, None);
    assert_eq!(format(json!({"type": "text"})).generation.schema, None);

    assert!(with(json!({"truncation": "auto"})).truncate);
    let logprobs = with(json!({"include": ["message.output_text.logprobs"], "top_logprobs": 3}));
    assert_eq!(logprobs.generation.n_top_logprobs, Some(3));
    let echoed = with(json!({"temperature": 0.7, "top_p": 0.9}));
    assert_eq!(echoed.reply.echo["temperature"].to_string(), "0.7");
    assert_eq!(echoed.reply.echo["top_p"].to_string(), "0.9");
}

#[test]
fn a_thread_is_its_own_session() {
    let mut context = common::context();
    for (name, value) in [("session-id", "s"), ("thread-id", "t")] {
        context.headers.insert(name.to_owned(), value.to_owned());
    }
    let parsed = parse(&codex(), &context).expect("a good request");
    assert_eq!(parsed.generation.affinity.as_deref(), Some("t"));
}

#[test]
fn an_answer_that_was_begun_is_gone_on_with() {
    let begun = json!({"role": "assistant", "content": "Once upon"});
    let body = json!({"input": [{"role": "user", "content": "Tell"}, begun]});
    let parsed = parse_with_store(
        &body,
        &common::context(),
        &ds4_server::api::responses::NoStore,
    )
    .expect("a request");
    let PromptSource::Messages(messages) = &parsed.generation.prompt else {
        panic!("a conversation");
    };
    let last = messages.last().expect("a message");
    assert!(last.open_ended && last.content == "Once upon", "{last:?}");
}

#[test]
fn bad_fields_and_wishes_are_named() {
    use FailureKind::{Invalid, Unsupported};
    let user = json!({"role": "user", "content": "Hi"});
    let cases = [
        (json!({}), Invalid, "input"),
        (json!({"input": []}), Invalid, "input"),
        (json!({"input": 3}), Invalid, "input"),
        (json!({"input": [3]}), Invalid, "input[0]"),
        (
            json!({"input": [{"content": "Hi"}]}),
            Invalid,
            "input[0].type",
        ),
        (
            json!({"input": [user, {"type": "robot"}]}),
            Invalid,
            "input[1].type",
        ),
        (
            json!({"input": [{"role": "robot", "content": "Hi"}]}),
            Invalid,
            "input[0].role",
        ),
        (
            json!({"input": [{"role": "user", "content": 3}]}),
            Invalid,
            "input[0].content",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
            Invalid,
            "input[0].content[0].text",
        ),
        (
            json!({"input": [user, {"type": "function_call", "name": "f", "arguments": "{}"}]}),
            Invalid,
            "input[1].call_id",
        ),
        (
            json!({"input": [{"role": "developer", "content": "Yes"}]}),
            Invalid,
            "input",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}),
            Invalid,
            "input[0].call_id",
        ),
        (
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            Invalid,
            "input[0].id",
        ),
        (
            json!({"input": "Hi", "previous_response_id": "resp_1"}),
            Invalid,
            "previous_response_id",
        ),
        (
            json!({"input": "Hi", "background": true}),
            Unsupported,
            "background",
        ),
        (
            json!({"input": "Hi", "conversation": "conv_1"}),
            Unsupported,
            "conversation",
        ),
        (
            json!({"input": "Hi", "prompt": {"id": "p"}}),
            Unsupported,
            "prompt",
        ),
        (
            json!({"input": "Hi", "truncation": "some"}),
            Invalid,
            "truncation",
        ),
        (
            json!({"input": "Hi", "max_output_tokens": -5}),
            Invalid,
            "max_output_tokens",
        ),
        (
            json!({"input": "Hi", "top_logprobs": 21}),
            Invalid,
            "top_logprobs",
        ),
        (
            json!({"input": "Hi", "temperature": 2.5}),
            Invalid,
            "temperature",
        ),
        (
            json!({"input": "Hi", "reasoning": {"effort": "huge"}}),
            Invalid,
            "reasoning.effort",
        ),
        (
            json!({"input": "Hi", "reasoning": {"summary": "long"}}),
            Invalid,
            "reasoning.summary",
        ),
        (
            json!({"input": "Hi", "text": {"format": {"type": "xml"}}}),
            Invalid,
            "text.format.type",
        ),
        (
            json!({"input": "Hi", "tool_choice": "required"}),
            Invalid,
            "tool_choice",
        ),
        (
            json!({"input": "Hi", "tool_choice": {"type": "function", "name": "fly"}}),
            Invalid,
            "tool_choice.name",
        ),
        (
            json!({"input": "Hi", "tools": [{"type": "function"}]}),
            Invalid,
            "tools[0].name",
        ),
        (
            json!({"input": "Hi", "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "f"}]}),
            Invalid,
            "tools",
        ),
    ];
    for (body, kind, place) in cases {
        let failure = parse(&body, &common::context()).expect_err("a bad request");
        assert_eq!(failure.kind, kind, "{body}: {failure}");
        assert_eq!(failure.param.as_deref(), Some(place), "{body}: {failure}");
        assert!(failure.message.starts_with(place), "{body}: {failure}");
    }
    let strict = RequestContext {
        strict_tools: true,
        ..common::context()
    };
    let failure = parse(&codex(), &strict).expect_err("a hosted tool");
    assert_eq!(failure.param.as_deref(), Some("tools[4].type"));
}

#[test]
fn namespaces_are_joined_to_names() {
    for (space, name, flat) in [
        (None, "f", "f"),
        (Some(""), "f", "f"),
        (Some("ns"), "f", "ns__f"),
        (Some("mcp__docs__"), "f", "mcp__docs__f"),
        (Some("a."), "f", "a.f"),
    ] {
        assert_eq!(flat_name(space, name), flat);
    }
}

/// Answers a request with one call, and keeps the response.
fn answer_and_keep(body: &Value, store: &mut MemoryStore) -> (Parsed, Value) {
    let parsed = parse_with_store(body, &common::context(), store).expect("a good request");
    let mut writer = Writer::new(9, 0);
    writer.reasoning("Hm");
    writer.call("book", &["{}"], true);
    let script = writer.finish(Finish::ToolCalls);
    let mut response = complete(&script.outcome, &script.logprobs, &parsed.reply);
    // Scripted calls have the same id in every reply.
    let n = parsed.input.len();
    response["output"][1]["call_id"] = format!("call_{n}").into();
    store.put(StoredResponse {
        input: parsed.input.clone(),
        response: response.clone(),
    });
    (parsed, response)
}

#[test]
fn a_stored_response_is_continued_as_if_all_had_been_sent_again() {
    let mut store = MemoryStore::new(10, 1 << 20);
    let first = json!({"instructions": "Not inherited.", "input": "Hi"});
    let (_, response) = answer_and_keep(&first, &mut store);
    let output = json!({"type": "function_call_output", "call_id": "call_1", "output": "ok"});
    let mut whole = vec![json!({"type": "message", "role": "user", "content": "Hi"})];
    whole.extend(response["output"].as_array().unwrap().iter().cloned());
    whole.push(output.clone());
    let expected = parsed(&json!({"input": whole}));

    let by_id = json!({"input": [output], "previous_response_id": response["id"]});
    let by_call = json!({"input": [output]});
    let mut references = vec![whole[0].clone()];
    for item in response["output"].as_array().unwrap() {
        references.push(json!({"type": "item_reference", "id": item["id"]}));
    }
    references.push(output.clone());
    let by_reference = json!({"input": references});
    for body in [&by_id, &by_call, &by_reference] {
        let parsed = parse_with_store(body, &common::context(), &store).expect("it is stored");
        assert_eq!(messages(&parsed), messages(&expected), "{body}");
        let input: Vec<&Value> = parsed.input.iter().map(|item| &**item).collect();
        assert_eq!(input, whole.iter().collect::<Vec<_>>(), "{body}");
    }
    let parsed = parse_with_store(&by_id, &common::context(), &store).unwrap();
    assert_eq!(parsed.reply.echo["previous_response_id"], response["id"]);

    // The next turn has them all, and shares the items.
    let (second, response) = answer_and_keep(&by_id, &mut store);
    let third = json!({"input": "Thanks", "previous_response_id": response["id"]});
    let third = parse_with_store(&third, &common::context(), &store).expect("it is stored");
    assert_eq!(third.input.len(), 7);
    assert!(Arc::ptr_eq(&third.input[0], &second.input[0]));
}

#[test]
fn what_responses_share_counts_once_and_as_long_as_one_of_them_is_kept() {
    let first = json!({"input": "x".repeat(3000)});
    // Room for the long input once, and for six responses.
    let (_, one) = answer_and_keep(&json!({"input": "y"}), &mut MemoryStore::new(1, 1 << 20));
    let room = 3000 + 6 * (memory::of(&one) + 1500);
    let mut store = MemoryStore::new(3, room);
    let (_, mut last) = answer_and_keep(&first, &mut store);
    for _ in 0..4 {
        let next = json!({"input": "y", "previous_response_id": last["id"]});
        last = answer_and_keep(&next, &mut store).1;
    }
    assert_eq!(store.len(), 3);
    // The responses that brought the long input are gone, the input is not.
    let mut store = MemoryStore::new(2, room);
    let (_, mut last) = answer_and_keep(&first, &mut store);
    for i in 0..3 {
        let long =
            json!({"input": format!("{i}").repeat(room / 3), "previous_response_id": last["id"]});
        last = answer_and_keep(&long, &mut store).1;
    }
    let id = last["id"].as_str().expect("an id");
    assert!(
        store.response(id).is_none(),
        "with what it holds it is over the limit"
    );
    assert!(store.is_empty());
    let (_, kept) = answer_and_keep(&first, &mut store);
    assert!(
        store.response(kept["id"].as_str().unwrap()).is_some(),
        "all room is there again"
    );
}

/// What a store takes for one response and its input, in memory and not as text.
fn store_of_one() -> usize {
    let mut store = MemoryStore::new(1, 1 << 20);
    let (parsed, response) = answer_and_keep(&json!({"input": "Hi 0"}), &mut store);
    let input: usize = parsed.input.iter().map(|item| memory::of(item)).sum();
    let bytes = memory::of(&response) + input;
    assert!(
        bytes > 4 * response.to_string().len(),
        "text is the least of it"
    );
    bytes + parsed.input.len() * size_of::<Arc<Value>>()
}

#[test]
fn a_store_keeps_to_its_limits() {
    let keep = |max_responses, max_bytes| {
        let mut store = MemoryStore::new(max_responses, max_bytes);
        let mut ids = Vec::new();
        for i in 0..5 {
            let (_, response) = answer_and_keep(&json!({"input": format!("Hi {i}")}), &mut store);
            ids.push(response["id"].as_str().unwrap().to_owned());
        }
        (store, ids)
    };
    let (mut store, ids) = keep(2, 1 << 20);
    assert_eq!(store.len(), 2);
    assert!(store.response(&ids[2]).is_none(), "the oldest are dropped");
    let last = store.response(&ids[4]).expect("the last is kept");
    let item = last.output()[0]["id"].as_str().unwrap();
    assert_eq!(store.response_with_item(item).as_ref(), Some(&last));
    assert!(store.remove(&ids[4]));
    assert!(!store.remove(&ids[4]));
    assert!(store.response_with_item(item).is_none());
    assert_eq!(store.len(), 1);
    let now = common::context().now_unix;
    store.expire(now + MAX_AGE_S);
    assert_eq!(store.len(), 1, "it has the age at which it is still kept");
    store.expire(now + MAX_AGE_S + 1);
    assert!(store.is_empty(), "30 days are over");
    let one = store_of_one();
    let (store, _) = keep(100, one + one / 2);
    assert_eq!(store.len(), 1, "there is room for one and a half");
    let (store, _) = keep(100, 10);
    assert!(store.is_empty());
    assert_eq!(
        deleted("resp_1"),
        json!({"id": "resp_1", "object": "response", "deleted": true})
    );
}

#[test]
fn input_items_are_listed_in_pages() {
    let mut store = MemoryStore::new(10, 1 << 20);
    let items: Vec<Value> = (0..5)
        .map(|i| json!({"role": "user", "content": format!("{i}")}))
        .collect();
    let (_, response) = answer_and_keep(&json!({"input": items}), &mut store);
    let stored = store.response(response["id"].as_str().unwrap()).unwrap();
    let mut after: Option<String> = None;
    let mut seen = Vec::new();
    loop {
        let page = input_items(&stored, Some("asc"), after.as_deref(), Some(2)).unwrap();
        for item in page["data"].as_array().unwrap() {
            assert_eq!(item["type"], "message");
            seen.push(item["content"].as_str().unwrap().to_owned());
        }
        if page["has_more"] == false {
            break;
        }
        after = page["last_id"].as_str().map(str::to_owned);
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    let latest = input_items(&stored, None, None, Some(1)).unwrap();
    assert_eq!(latest["data"][0]["content"], "4");
    assert_eq!(latest["first_id"], latest["last_id"]);
    for (order, after, limit) in [
        (Some("random"), None, None),
        (None, Some("nobody"), None),
        (None, None, Some(0)),
        (None, None, Some(101)),
    ] {
        let failure = input_items(&stored, order, after, limit).expect_err("a bad page");
        assert_eq!(failure.kind, FailureKind::Invalid);
    }
}

#[test]
fn a_count_has_its_object_name() {
    assert_eq!(
        token_count(7),
        json!({"object": "response.input_tokens", "input_tokens": 7})
    );
}

#[test]
fn a_request_with_one_bad_node_is_read_or_refused_by_name() {
    let mut n_refused = 0;
    let bodies = common::with_one_node_changed(&codex());
    for body in &bodies {
        if let Err(failure) = parse(body, &common::context()) {
            n_refused += 1;
            let is_body = !body.is_object();
            assert!(failure.param.is_some() || is_body, "{failure}: {body}");
        }
    }
    assert!(n_refused > 100 && n_refused < bodies.len(), "{n_refused}");
}
