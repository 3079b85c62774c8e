//! Requests that cannot be answered: each gets the error of its API, and nothing else notices.

use serde_json::{Value, json};

use ds4_server::http::ServerOptions;

use crate::script::{Behaviour, Script};
use crate::web::{Answer, Web};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const GENERATION: [&str; 4] = [CHAT, COMPLETIONS, MESSAGES, RESPONSES];
/// Every path that reads a body.
const POSTS: [&str; 10] = [
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    "/v1/chat/completions/input_tokens",
    "/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
    "/tokenize",
    "/detokenize",
    "/apply-template",
];
/// Tokens of the context in these tests.
const CONTEXT: usize = 200;

fn good(path: &str) -> Value {
    match path {
        COMPLETIONS => json!({"prompt": "hi"}),
        RESPONSES => json!({"input": "hi"}),
        _ => json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}),
    }
}

async fn server() -> Web {
    let behaviour = Behaviour {
        context: CONTEXT,
        ..Behaviour::default()
    };
    let options = ServerOptions {
        max_body_bytes: 1 << 20,
        ..ServerOptions::default()
    };
    Web::start(behaviour, options, Vec::<Script>::new()).await
}

/// Checks the whole shape of an error, in the words of the API that was asked.
#[track_caller]
fn check_shape(path: &str, what: &str, answer: &Answer, kinds: (&str, &str)) -> String {
    let body = answer.json();
    let error = &body["error"];
    let names = |value: &Value| -> Vec<String> {
        let members = value.as_object().expect("an object");
        members.keys().cloned().collect()
    };
    let message = error["message"].as_str().expect("a message").to_owned();
    assert!(
        !message.is_empty() && message.lines().count() == 1,
        "{path} {what}: {message:?}"
    );
    if path.starts_with("/v1/messages") {
        assert_eq!(
            names(&body),
            ["type", "error", "request_id"],
            "{path} {what}"
        );
        assert_eq!(names(error), ["type", "message"], "{path} {what}");
        assert_eq!(body["type"], "error", "{path} {what}");
        assert_eq!(error["type"], kinds.1, "{path} {what}: {message}");
        assert_eq!(
            body["request_id"].as_str(),
            answer.header("request-id"),
            "{path} {what}"
        );
    } else {
        assert_eq!(
            names(error),
            ["message", "type", "param", "code"],
            "{path} {what}"
        );
        assert_eq!(error["type"], kinds.0, "{path} {what}: {message}");
        assert!(answer.header("x-request-id").is_some(), "{path} {what}");
    }
    message
}

/// What the engine has done, that no refused request may change.
fn work_of(web: &Web) -> (usize, usize) {
    let seen = web.seen.lock().unwrap();
    (seen.n_ticks, seen.prompts.len())
}

/// A good request works, and then nothing runs.
async fn works(web: &Web, after: &str) {
    for path in GENERATION {
        let answer = web.post(path, &good(path)).await;
        assert_eq!(answer.status, 200, "{path} after {after}: {answer:?}");
    }
    let health = web.get("/health?verbose=1").await.json();
    assert_eq!(
        (&health["running"], &health["waiting"]),
        (&json!(0), &json!(0)),
        "after {after}"
    );
    for slot in web.get("/slots").await.json().as_array().expect("slots") {
        assert_eq!(slot["is_processing"], false, "after {after}");
    }
}

const INVALID: (&str, &str) = ("invalid_request_error", "invalid_request_error");

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_json_are_refused_everywhere() {
    let web = server().await;
    let before = work_of(&web);
    let deep = |n: usize| format!("{{\"messages\": {}{}}}", "[".repeat(n), "]".repeat(n));
    let bodies: [(&str, Vec<u8>); 12] = [
        ("nothing", Vec::new()),
        ("half of it", b"{\"messages\": [".to_vec()),
        ("two values", b"{} {}".to_vec()),
        ("a list", b"[]".to_vec()),
        ("a number", b"3".to_vec()),
        ("null", b"null".to_vec()),
        ("NaN", b"{\"temperature\": NaN}".to_vec()),
        ("a number beyond f64", b"{\"user\": 1e999}".to_vec()),
        ("invalid UTF-8", b"{\"messages\": \"\xff\xfe\"}".to_vec()),
        ("a NUL", b"\0{}".to_vec()),
        ("129 levels", deep(128).into_bytes()),
        ("100,000 levels", deep(100_000).into_bytes()),
    ];
    for path in POSTS {
        for (what, body) in &bodies {
            let answer = web.ask("POST", path, &[], body).await;
            assert_eq!(answer.status, 400, "{path} {what}: {answer:?}");
            check_shape(path, what, &answer, INVALID);
        }
        let large = vec![b' '; (1 << 20) + 1];
        let answer = web.ask("POST", path, &[], &large).await;
        assert_eq!(answer.status, 413, "{path}: {answer:?}");
        let kinds = ("invalid_request_error", "request_too_large");
        let message = check_shape(path, "large", &answer, kinds);
        assert!(message.contains("--max-body-mb"), "{message}");
    }
    assert_eq!(work_of(&web), before, "nothing reached the engine");
    works(&web, "bodies that are not JSON").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_the_wrong_type_are_named() {
    let web = server().await;
    let before = work_of(&web);
    let wrong = [
        ("messages", json!("hi"), &[CHAT, MESSAGES][..]),
        ("messages", json!([3]), &[CHAT, MESSAGES]),
        (
            "messages",
            json!([{"role": 3, "content": "hi"}]),
            &[CHAT, MESSAGES],
        ),
        (
            "messages",
            json!([{"role": "user", "content": 3}]),
            &[CHAT, MESSAGES],
        ),
        ("input", json!(3), &[RESPONSES]),
        (
            "input",
            json!([{"role": "user", "content": {}}]),
            &[RESPONSES],
        ),
        ("input", json!([{"type": "no such type"}]), &[RESPONSES]),
        ("prompt", json!({}), &[COMPLETIONS]),
        ("temperature", json!("hot"), &GENERATION),
        ("temperature", json!(2.5), &GENERATION),
        ("top_p", json!(0), &GENERATION),
        ("top_p", json!([]), &GENERATION),
        ("stream", json!("yes"), &GENERATION),
        ("tools", json!({}), &[CHAT, MESSAGES, RESPONSES]),
        ("tools", json!([{"name": 3}]), &[MESSAGES]),
        ("stop", json!(3), &[CHAT, COMPLETIONS]),
        ("stop", json!([""]), &[CHAT, COMPLETIONS]),
        ("stop", json!(vec!["x"; 17]), &[CHAT, COMPLETIONS]),
        ("stop_sequences", json!(3), &[MESSAGES]),
        ("max_tokens", json!(-1), &[CHAT, COMPLETIONS, MESSAGES]),
        ("max_tokens", json!(1.5), &[CHAT, COMPLETIONS, MESSAGES]),
        ("max_output_tokens", json!(-1), &[RESPONSES]),
        ("presence_penalty", json!(3), &[CHAT, COMPLETIONS]),
        ("logit_bias", json!({"x": 1}), &[CHAT, COMPLETIONS]),
        ("logit_bias", json!({"5": 101}), &[CHAT, COMPLETIONS]),
        ("seed", json!("x"), &[CHAT, COMPLETIONS]),
        ("n", json!(9), &[CHAT, COMPLETIONS]),
        ("top_k", json!(-2), &[CHAT, MESSAGES]),
        ("system", json!(3), &[MESSAGES]),
        ("instructions", json!(3), &[RESPONSES]),
        ("previous_response_id", json!("resp_unknown"), &[RESPONSES]),
        ("response_format", json!({"type": "xml"}), &[CHAT]),
        ("text", json!({"format": {"type": "xml"}}), &[RESPONSES]),
    ];
    let mut accepted = Vec::new();
    for (name, value, paths) in wrong {
        for path in paths {
            let mut body = good(path);
            body[name] = value.clone();
            let what = format!("{name}: {value}");
            let answer = web.post(path, &body).await;
            if answer.status != 400 {
                accepted.push(format!("{path} {what}: {}", answer.status));
                continue;
            }
            let message = check_shape(path, &what, &answer, INVALID);
            let param = answer.json()["error"]["param"].clone();
            let param = param.as_str().unwrap_or(name);
            if !(message.contains(name) && param.starts_with(name)) {
                accepted.push(format!("{path} {what}: {param:?} {message}"));
            }
        }
    }
    assert_eq!(accepted, Vec::<String>::new());
    assert_eq!(work_of(&web), before, "nothing reached the engine");
    works(&web, "wrong types").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_and_options_that_contradict_themselves_are_refused() {
    let web = server().await;
    let before = work_of(&web);
    let user = json!({"role": "user", "content": "hi"});
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let messages_tool = json!({"name": "f", "input_schema": {"type": "object"}});
    let flat = json!({"type": "function", "name": "f"});
    let mut accepted = Vec::new();
    for (path, what, body) in [
        (
            CHAT,
            "unknown role",
            json!({"messages": [{"role": "robot", "content": ""}]}),
        ),
        (
            MESSAGES,
            "unknown role",
            json!({"messages": [{"role": "robot", "content": ""}]}),
        ),
        (
            RESPONSES,
            "unknown role",
            json!({"input": [{"role": "robot", "content": ""}]}),
        ),
        (CHAT, "no messages", json!({"messages": []})),
        (MESSAGES, "no messages", json!({"messages": []})),
        (RESPONSES, "no input", json!({"input": []})),
        (CHAT, "nothing", json!({})),
        (COMPLETIONS, "nothing", json!({})),
        (MESSAGES, "nothing", json!({})),
        (RESPONSES, "nothing", json!({})),
        (
            CHAT,
            "an orphan result",
            json!({"messages": [
            {"role": "tool", "tool_call_id": "call_1", "content": "42"}]}),
        ),
        (
            MESSAGES,
            "an orphan result",
            json!({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "42"}]}]}),
        ),
        (
            RESPONSES,
            "an orphan result",
            json!({"input": [
            {"type": "function_call_output", "call_id": "call_1", "output": "42"}]}),
        ),
        (
            CHAT,
            "a result without an id",
            json!({"messages": [user, {"role": "tool", "content": "42"}]}),
        ),
        (
            CHAT,
            "two tools of one name",
            json!({"messages": [user], "tools": [tool, tool]}),
        ),
        (
            MESSAGES,
            "two tools of one name",
            json!({"messages": [user], "tools": [messages_tool, messages_tool]}),
        ),
        (
            RESPONSES,
            "two tools of one name",
            json!({"input": "hi", "tools": [flat, flat]}),
        ),
        (
            CHAT,
            "a call without tools",
            json!({"messages": [user], "tool_choice": "required"}),
        ),
        (
            MESSAGES,
            "a call without tools",
            json!({"messages": [user], "tool_choice": {"type": "any"}}),
        ),
        (
            RESPONSES,
            "a call without tools",
            json!({"input": "hi", "tool_choice": "required"}),
        ),
        (
            CHAT,
            "an undeclared tool",
            json!({"messages": [user], "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        ),
        (
            MESSAGES,
            "an undeclared tool",
            json!({"messages": [user], "tools": [messages_tool],
            "tool_choice": {"type": "tool", "name": "g"}}),
        ),
        (
            RESPONSES,
            "an undeclared tool",
            json!({"input": "hi", "tools": [flat],
            "tool_choice": {"type": "function", "name": "g"}}),
        ),
        (
            CHAT,
            "likeliest tokens of nothing",
            json!({"messages": [user], "top_logprobs": 3}),
        ),
        (
            RESPONSES,
            "two kinds of state",
            json!({"input": "hi", "previous_response_id": "resp_1",
            "conversation": "conv_1"}),
        ),
        (
            RESPONSES,
            "work in the background",
            json!({"input": "hi", "background": true}),
        ),
        (
            COMPLETIONS,
            "a best of more",
            json!({"prompt": "hi", "best_of": 3}),
        ),
        (
            CHAT,
            "sound",
            json!({"messages": [user], "modalities": ["text", "audio"]}),
        ),
        (
            CHAT,
            "functions of old",
            json!({"messages": [user], "functions": [{"name": "f"}]}),
        ),
    ] {
        let mut body = body;
        body["max_tokens"] = json!(9);
        let answer = web.post(path, &body).await;
        if answer.status == 400 {
            check_shape(path, what, &answer, INVALID);
        } else {
            accepted.push(format!("{path} {what}: {}", answer.status));
        }
    }
    assert_eq!(accepted, Vec::<String>::new());
    assert_eq!(work_of(&web), before, "nothing reached the engine");
    works(&web, "contradictions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_beyond_the_context_is_told_in_the_words_that_clients_match() {
    let web = server().await;
    let before = work_of(&web);
    let long = "x".repeat(CONTEXT);
    for (path, param) in [
        (CHAT, "messages"),
        (COMPLETIONS, "prompt"),
        (RESPONSES, "input"),
        (MESSAGES, ""),
    ] {
        for stream in [false, true] {
            let mut body = good(path);
            body["stream"] = json!(stream);
            match path {
                COMPLETIONS => body["prompt"] = json!(long),
                RESPONSES => body["input"] = json!(long),
                _ => body["messages"][0]["content"] = json!(long),
            }
            let answer = web.post(path, &body).await;
            assert_eq!(answer.status, 400, "{path}: {answer:?}");
            let error = answer.json()["error"].clone();
            let message = error["message"].as_str().expect("a message");
            if path == MESSAGES {
                let end = format!(" tokens > {} maximum", CONTEXT - 1);
                assert!(message.starts_with("prompt is too long: 2"), "{message}");
                assert!(message.ends_with(&end), "{message}");
                check_shape(path, "long", &answer, INVALID);
            } else {
                let begin = "This model's maximum context length is 200 tokens. However, your";
                assert!(message.starts_with(begin), "{path}: {message}");
                assert_eq!(error["code"], "context_length_exceeded", "{path}");
                assert_eq!(error["param"], param, "{path}");
            }
        }
    }
    assert_eq!(work_of(&web), before, "nothing reached the engine");
    works(&web, "long prompts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_and_addresses_that_do_not_exist_are_told_in_shape() {
    let web = server().await;
    for path in POSTS {
        for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD"] {
            if (method, path) == ("GET", RESPONSES) {
                continue;
            }
            let answer = web.ask(method, path, &[], "").await;
            assert_eq!(answer.status, 405, "{method} {path}: {answer:?}");
            let allow = answer.header("allow").expect("allow");
            assert!(allow.contains("POST"), "{method} {path}: {allow}");
            if method != "HEAD" {
                check_shape(path, method, &answer, INVALID);
            }
        }
        let preflight = web.ask("OPTIONS", path, &[], "").await;
        assert_eq!(preflight.status, 204, "{path}");
    }
    for path in [
        "/",
        "/health",
        "/v1/models",
        "/slots",
        "/props",
        "/version",
        "/metrics",
    ] {
        let answer = web.ask("HEAD", path, &[], "").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
        let answer = web.ask("POST", path, &[], "{}").await;
        assert_eq!(answer.status, 405, "{path}");
        let allow = answer.header("allow").expect("allow");
        assert!(allow.contains("GET"), "{path}: {allow}");
    }
    for path in [
        "/v1/embeddings",
        "/v1/files",
        "/v1/chat",
        "/.env",
        "/v1/messages/x",
        "/%ff",
    ] {
        let answer = web.post(path, &json!({})).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        check_shape(
            path,
            "unknown",
            &answer,
            ("invalid_request_error", "not_found_error"),
        );
    }
    for path in ["/v1/responses/%ff", "/v1/models/%ff"] {
        let answer = web.get(path).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        check_shape(path, "no UTF-8", &answer, INVALID);
    }
    works(&web, "wrong addresses").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_origins_and_hosts_get_their_own_errors_whatever_the_body() {
    let behaviour = Behaviour::default();
    let options = ServerOptions {
        api_keys: vec!["secret".to_owned()],
        ..ServerOptions::default()
    };
    let web = Web::start(behaviour, options, Vec::<Script>::new()).await;
    let large = vec![b'x'; 8 << 20];
    let key = ("x-api-key", "secret");
    for path in POSTS {
        for (what, headers, status, kinds) in [
            (
                "no key",
                vec![],
                401,
                ("invalid_request_error", "authentication_error"),
            ),
            (
                "a wrong key",
                vec![("authorization", "Bearer public")],
                401,
                ("invalid_request_error", "authentication_error"),
            ),
            (
                "a foreign page",
                vec![key, ("origin", "http://evil.example")],
                403,
                ("permission_error", "permission_error"),
            ),
            (
                "a foreign host",
                vec![key, ("host", "evil.example:8000")],
                403,
                ("permission_error", "permission_error"),
            ),
        ] {
            for body in [&b"{}"[..], &large] {
                let answer = web.ask("POST", path, &headers, body).await;
                assert_eq!(answer.status, status, "{path} {what}: {answer:?}");
                check_shape(path, what, &answer, kinds);
            }
        }
    }
    for path in ["/health", "/v1/health", "/healthz", "/ping", "/"] {
        assert_eq!(web.get(path).await.status, 200, "{path} needs no key");
    }
    for path in ["/slots", "/metrics", "/props", "/v1/models", "/version"] {
        assert_eq!(web.get(path).await.status, 401, "{path} needs one");
    }
    assert_eq!(work_of(&web).1, 0, "nothing reached the engine");
}
