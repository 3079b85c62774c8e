//! The play itself, by clients that ask as the agents do.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stage::Stage;

const CONTEXT: usize = 4096;
const PATH: &str = "/tmp/é/hello.txt";
const ASK: &str = "Read the file /tmp/é/hello.txt and tell me the secret word.";
const FILE: &str = "1\tline one\n2\tThe secret word is ZEBRA-7\n";
const ANSWER: &str = "The word is ZEBRA-7.";

async fn stage() -> Stage {
    Stage::open(0, CONTEXT, |_| {}).await
}

/// The body of a whole answer with status 200.
async fn post(stage: &Stage, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut stream = TcpStream::connect(stage.address).await.expect("it listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        stage.address,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).expect("JSON")
}

/// The first turn's prompt and reply are in the slot when the second comes; of the reply, at most
/// its last token is not.
#[track_caller]
fn is_continued(n_first: &Value, n_generated: &Value, n_cached: &Value) {
    let of = |n: &Value| n.as_u64().unwrap_or_else(|| panic!("{n} is no count"));
    let held = of(n_first) + of(n_generated) - 1;
    let n_cached = of(n_cached);
    assert!(n_cached >= held, "{n_cached} tokens cached, {held} held");
}

fn member_of_object(name: &str) -> Value {
    json!({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]})
}

/// With what else Claude Code sends: a system message in the middle, a limit beyond the context,
/// betas in the path, wishes that are not ours, deferred tools.
#[tokio::test(flavor = "multi_thread")]
async fn claude_codes_tools_are_called_and_those_it_finds_later_too() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&lines);
    let stage = Stage::open(0, CONTEXT, move |line| log.lock().unwrap().push(line)).await;
    let tool = |name: &str, member: &str, deferred: bool| {
        json!({"name": name, "description": "x", "input_schema": member_of_object(member),
               "defer_loading": deferred})
    };
    let ask = |messages: &[Value]| {
        json!({
            "model": "claude-haiku-4-5", "max_tokens": 128_000, "stream": false,
            "thinking": {"type": "adaptive", "display": "omitted"},
            "context_management": {"edits": []}, "safeguards": [{"type": "unknown"}],
            "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1"},
                       {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "tools": [tool("Read", "file_path", false), tool("TaskStop", "task_id", true),
                      tool("ToolSearch", "query", false),
                      {"type": "web_search_20250305", "name": "web_search"}],
            "messages": messages,
        })
    };
    let result = |call: &Value, content: Value| {
        json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call["id"], "content": content}]})
    };
    let said = |reply: &Value| json!({"role": "assistant", "content": reply["content"]});
    let path = "/v1/messages?beta=true";
    let environment = json!({"role": "system", "content": "# Environment"});

    let mut messages = vec![json!({"role": "user", "content": ASK}), environment];
    let first = post(&stage, path, &ask(&messages)).await;
    assert_eq!(first["stop_reason"], "tool_use", "{first}");
    let calls = first["content"].as_array().expect("blocks");
    let call = calls.last().expect("a call");
    assert_eq!(
        (&call["name"], &call["input"]),
        (&json!("Read"), &json!({"file_path": PATH}))
    );
    messages.extend([said(&first), result(call, json!(FILE))]);
    let second = post(&stage, path, &ask(&messages)).await;
    let answer = second["content"]
        .as_array()
        .expect("blocks")
        .last()
        .cloned();
    assert_eq!(answer, Some(json!({"type": "text", "text": ANSWER})));
    let usage = [&first["usage"], &second["usage"]];
    assert_eq!(usage[0]["cache_read_input_tokens"], 0);
    let n_cached = &usage[1]["cache_read_input_tokens"];
    is_continued(
        &usage[0]["input_tokens"],
        &usage[0]["output_tokens"],
        n_cached,
    );

    // An image in a result is a line of text.
    let ask_look = json!({"role": "user", "content": format!("Look at the image {PATH}")});
    let mut look = vec![ask_look];
    let seen = post(&stage, path, &ask(&look)).await;
    let call = seen["content"].as_array().expect("blocks").last().cloned();
    let image = json!([{"type": "image", "source":
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]);
    look.extend([said(&seen), result(&call.expect("a call"), image)]);
    assert_eq!(
        post(&stage, path, &ask(&look)).await["stop_reason"],
        "end_turn"
    );

    // A deferred tool is called where it was found, and what stands before it stays cached.
    let mut load = vec![json!({"role": "user", "content": "Load the tool TaskStop and call it."})];
    let search = post(&stage, path, &ask(&load)).await;
    let call = search["content"]
        .as_array()
        .expect("blocks")
        .last()
        .cloned();
    let call = call.expect("a call");
    assert_eq!(call["input"], json!({"query": "select:TaskStop"}));
    let found = json!([{"type": "tool_reference", "tool_name": "TaskStop"}]);
    load.extend([said(&search), result(&call, found)]);
    let called = post(&stage, path, &ask(&load)).await;
    let call = called["content"]
        .as_array()
        .expect("blocks")
        .last()
        .cloned();
    assert_eq!(call.expect("a call")["name"], "TaskStop", "{called}");
    let n_first = search["usage"]["input_tokens"].as_u64().expect("a count")
        + search["usage"]["cache_read_input_tokens"]
            .as_u64()
            .expect("a count");
    let n_cached = &called["usage"]["cache_read_input_tokens"];
    is_continued(&n_first.into(), &search["usage"]["output_tokens"], n_cached);

    // What is left out of every request is said once; every request leaves a line.
    stage.server.settle();
    let lines = lines.lock().unwrap();
    let n = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        (n("x-anthropic-"), n(" messages prompt=")),
        (1, 6),
        "{lines:#?}"
    );
}

/// Codex has a shell for everything, keeps no state here, and sends back items as they were.
#[tokio::test(flavor = "multi_thread")]
async fn codexs_shell_is_called() {
    let stage = stage().await;
    let ask = |input: &[Value]| {
        json!({
            "model": "m", "store": false, "input": input, "client_metadata": {"a": "b"},
            "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"},
            "tools": [{"type": "function", "name": "exec_command", "description": "x",
                       "strict": false, "parameters": member_of_object("cmd")},
                      {"type": "web_search"}],
        })
    };
    let message = |role: &str, text: &str| {
        json!({"type": "message", "role": role,
               "content": [{"type": "input_text", "text": text}]})
    };
    let mut input = vec![
        message("developer", "Be brief."),
        message("user", "<environment_context/>"),
        message("user", ASK),
    ];
    let first = post(&stage, "/v1/responses", &ask(&input)).await;
    let items = first["output"].as_array().expect("items");
    let call = items.last().expect("a call");
    assert_eq!(call["name"], "exec_command", "{first}");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("text")).unwrap();
    assert_eq!(arguments, json!({"cmd": format!("cat '{PATH}'")}));
    input.extend(items.iter().cloned());
    input.push(
        json!({"type": "function_call_output", "call_id": call["call_id"],
                      "output": format!("Exit code: 0\nOutput:\n{FILE}")}),
    );
    let second = post(&stage, "/v1/responses", &ask(&input)).await;
    let answer = second["output"].as_array().expect("items").last().cloned();
    assert_eq!(answer.expect("a message")["content"][0]["text"], ANSWER);
    let usage = [&first["usage"], &second["usage"]];
    let n_cached = &usage[1]["input_tokens_details"]["cached_tokens"];
    is_continued(
        &usage[0]["input_tokens"],
        &usage[0]["output_tokens"],
        n_cached,
    );
}

/// opencode and Pi have tools for files and a shell; two are called at once, and the results come
/// back in the other order, the arguments written anew.
#[tokio::test(flavor = "multi_thread")]
async fn two_calls_at_once_are_answered_in_any_order() {
    let stage = stage().await;
    let tool = |name: &str, members: &[&str]| {
        let members: serde_json::Map<String, Value> = members
            .iter()
            .map(|name| ((*name).to_owned(), json!({"type": "string"})))
            .collect();
        json!({"type": "function", "function": {"name": name, "description": "x",
               "parameters": {"type": "object", "properties": members}}})
    };
    let ask = |messages: &[Value]| {
        json!({
            "model": "m", "max_completion_tokens": 32_768, "store": false, "messages": messages,
            "tools": [tool("read", &["path"]), tool("bash", &["command", "timeout"]),
                      tool("write", &["content", "path"])],
        })
    };
    let mut messages = vec![
        json!({"role": "developer", "content": "Be brief."}),
        json!({"role": "user", "content":
            "Create the file /tmp/n.txt with the number of lines in /tmp/data.txt. Then say DONE."}),
    ];
    let mut held = None;
    for n_calls in [2, 1, 0] {
        let reply = post(&stage, "/v1/chat/completions", &ask(&messages)).await;
        let usage = &reply["usage"];
        if let Some((n_first, n_generated)) = &held {
            let n_cached = &usage["prompt_tokens_details"]["cached_tokens"];
            is_continued(n_first, n_generated, n_cached);
        }
        held = Some((
            usage["prompt_tokens"].clone(),
            usage["completion_tokens"].clone(),
        ));
        let mut message = reply["choices"][0]["message"].clone();
        if n_calls == 0 {
            assert_eq!(message["content"], "DONE", "{reply}");
            break;
        }
        let calls = message["tool_calls"].as_array().expect("calls").clone();
        assert_eq!(calls.len(), n_calls, "{reply}");
        let arguments = |call: &Value| -> Value {
            let text = call["function"]["arguments"].as_str().expect("text");
            serde_json::from_str(text).expect("JSON")
        };
        for call in message["tool_calls"].as_array_mut().expect("calls") {
            call["function"]["arguments"] = json!(arguments(call).to_string());
        }
        messages.push(message);
        for call in calls.iter().rev() {
            let result = match call["function"]["name"].as_str().expect("a name") {
                "read" => "a\nb\nc",
                "bash" => "3\n",
                "write" => {
                    let wanted = json!({"content": "3", "path": "/tmp/n.txt"});
                    assert_eq!(arguments(call), wanted);
                    "written"
                }
                other => panic!("{other} was not declared"),
            };
            messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": result}));
        }
    }
}
