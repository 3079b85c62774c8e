//! What a client sees on the wire.

use std::time::{Duration, Instant};

use ds4_server::http::{Cors, ServerOptions};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::script::{Behaviour, Script};
use crate::web::{Web, read_until};

pub(crate) fn options() -> ServerOptions {
    ServerOptions::default()
}

pub(crate) fn hello(stream: bool) -> Value {
    json!({"model": "m", "max_tokens": 100, "stream": stream,
           "messages": [{"role": "user", "content": "hi"}]})
}

pub(crate) const ANSWER: &str = "thought</think>said";

/// One request of every generation endpoint.
fn endpoints(stream: bool) -> [(&'static str, Value); 4] {
    [
        ("/v1/chat/completions", hello(stream)),
        ("/v1/completions", json!({"prompt": "hi", "stream": stream})),
        ("/v1/messages", hello(stream)),
        ("/v1/responses", json!({"input": "hi", "stream": stream})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_answers_whole_and_as_a_stream_of_its_events() {
    let web = Web::start(Behaviour::default(), options(), vec![ANSWER; 8]).await;
    let whole: Vec<Value> = {
        let mut bodies = Vec::new();
        for (path, body) in endpoints(false) {
            let answer = web.post(path, &body).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            let header = answer.header("x-ds4-cache").expect(path).to_owned();
            assert!(header.starts_with("cached="), "{path}: {header}");
            bodies.push(answer.json());
        }
        bodies
    };
    assert_eq!(whole[0]["choices"][0]["message"]["content"], "said");
    assert_eq!(
        whole[0]["choices"][0]["message"]["reasoning_content"],
        "thought"
    );
    assert_eq!(whole[0]["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole[1]["choices"][0]["text"], ANSWER);
    assert_eq!(whole[2]["content"][0]["thinking"], "thought");
    assert_eq!(whole[2]["content"][1]["text"], "said");
    assert_eq!(whole[2]["stop_reason"], "end_turn");
    assert_eq!(whole[3]["status"], "completed");
    let mut ends = Vec::new();
    for (path, body) in endpoints(true) {
        let answer = web.post(path, &body).await;
        let kind = answer.header("content-type").expect(path);
        assert_eq!(kind, "text/event-stream; charset=utf-8", "{path}");
        assert_eq!(answer.header("x-accel-buffering"), Some("no"), "{path}");
        let events = answer.events();
        ends.push(events.last().expect("events").0.clone());
        if path == "/v1/responses" {
            let (_, last) = events.last().expect("events");
            let text = |output: &Value| {
                output
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|i| i["content"][0]["text"].clone())
                    .collect::<Vec<_>>()
            };
            assert_eq!(text(&last["response"]["output"]), text(&whole[3]["output"]));
            assert!(last["response"]["usage"]["input_tokens"].as_u64() > Some(0));
        }
    }
    assert_eq!(
        ends,
        ["[DONE]", "[DONE]", "message_stop", "response.completed"]
    );
    assert_eq!(
        web.log.lock().unwrap().len(),
        8,
        "one line for every request"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn other_spellings_of_a_path_and_unknown_ones() {
    let web = Web::start(Behaviour::default(), options(), [ANSWER]).await;
    for path in [
        "/v1/models",
        "/models/",
        "/api/v1/models",
        "/v1/models?limit=1000",
    ] {
        let answer = web.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(
            answer.json()["data"][0]["id"],
            "deepseek-v4-flash",
            "{path}"
        );
    }
    assert_eq!(web.get("/v1/models/some/model").await.status, 200);
    let answer = web
        .post("/anthropic/v1/messages?beta=true", &hello(false))
        .await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("request-id").is_some());
    let lost = web.get("/v1/embeddings").await;
    assert_eq!(
        (lost.status, &lost.json()["error"]["type"]),
        (404, &json!("invalid_request_error"))
    );
    let wrong = web.get("/v1/messages").await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    assert_eq!(wrong.json()["type"], "error");
    let head = web.ask("HEAD", "/", &[], "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let upgrade = [("upgrade", "websocket"), ("connection", "upgrade")];
    let websocket = web.ask("GET", "/v1/responses", &upgrade, "").await;
    assert_eq!(websocket.status, 426, "codex goes on with HTTP at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_needs_no_key_and_may_load_from_nowhere_else() {
    let options = ServerOptions {
        api_keys: vec!["secret".to_owned()],
        ..options()
    };
    // It is there before the model is.
    let web = Web::loading(options).await;
    let mut unread = vec!["/".to_owned()];
    let mut read = Vec::new();
    while let Some(path) = unread.pop() {
        let answer = web.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(
            policy.starts_with("default-src 'none';"),
            "{path}: {policy}"
        );
        assert!(
            !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let head = web.ask("HEAD", &path, &[], "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        // An address names the SVG format; nothing else leads out of the page.
        let body = answer.body.replace("http://www.w3.org/2000/svg", "");
        // Libraries name places too, in remarks and in what they recognise as an address.
        let is_library = path.starts_with("/page/vendor/");
        assert!(
            is_library || !body.contains("://"),
            "{path} names another place"
        );
        assert!(
            !body.contains("<script>") && !body.contains(" style="),
            "{path}"
        );
        let leads = [("src=\"", "/"), ("href=\"", "/"), ("from \"./", "/page/")];
        for (before, folder) in leads.into_iter().filter(|_| !is_library) {
            for part in body.split(before).skip(1) {
                let name = part.split('"').next().expect("a name");
                unread.push(format!("{folder}{name}"));
            }
        }
        read.push(path);
        unread.retain(|path| !read.contains(path));
        unread.dedup();
    }
    read.sort();
    let parts = [
        "chat.js",
        "chats.js",
        "icon.svg",
        "markup.js",
        "server.js",
        "settings.js",
        "status.js",
        "store.js",
        "style.css",
        "trouble.js",
        "vendor/marked.js",
        "vendor/prism.js",
    ];
    let parts = parts.map(|name| format!("/page/{name}"));
    assert_eq!(read, [&["/".to_owned()][..], &parts].concat());
    for path in ["/page/other", "/slots"] {
        assert_eq!(web.get(path).await.status, 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loads_says_so_and_goes_on_when_it_has() {
    let web = Web::loading(options()).await;
    let health = web.get("/health").await;
    assert_eq!(health.status, 503);
    let early = web.post("/v1/chat/completions", &hello(false)).await;
    assert_eq!(early.status, 503);
    assert!(early.header("retry-after").is_some());
    web.load(Behaviour::default(), [ANSWER]);
    assert_eq!(web.get("/health").await.json(), json!({"status": "ok"}));
    assert_eq!(
        web.post("/v1/chat/completions", &hello(false)).await.status,
        200
    );
    let verbose = web.get("/health?verbose=1").await.json();
    assert_eq!(verbose["slots"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_in_the_clients_own_shape() {
    let mut limited = options();
    limited.max_body_bytes = 1 << 20;
    let behaviour = Behaviour {
        context: 64,
        ..Behaviour::default()
    };
    let web = Web::start(behaviour, limited, Vec::<Script>::new()).await;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses"] {
        let anthropic = path == "/v1/messages";
        let deep = format!("{}1{}", "[".repeat(129), "]".repeat(129));
        let long = "x".repeat(100);
        let long = json!({"messages": [{"role": "user", "content": long}], "input": long, "max_tokens": 1});
        for (what, body, status, word) in [
            ("no JSON", "{".to_owned(), 400, "not JSON"),
            (
                "deep JSON",
                format!("{{\"messages\": {deep}}}"),
                400,
                "nested deeper than 127 levels",
            ),
            (
                "a number",
                r#"{"messages": 3, "input": 3}"#.to_owned(),
                400,
                "",
            ),
            (
                "long",
                long.to_string(),
                400,
                if anthropic {
                    "prompt is too long: 10"
                } else {
                    "maximum context length is 64 tokens"
                },
            ),
            ("large", " ".repeat((1 << 20) + 1), 413, "larger than 1 MiB"),
        ] {
            let answer = web.ask("POST", path, &[], &body).await;
            assert_eq!(answer.status, status, "{path} {what}: {answer:?}");
            let error = answer.json();
            assert_eq!(error["type"] == "error", anthropic, "{path} {what}");
            let message = error["error"]["message"].as_str().expect("a message");
            assert!(message.contains(word), "{path} {what}: {message}");
        }
    }
    let header = [("x-long", "y".repeat(80 << 10))];
    let header: Vec<(&str, &str)> = header.iter().map(|(n, v)| (*n, v.as_str())).collect();
    assert_eq!(web.ask("GET", "/health", &header, "").await.status, 431);
    assert_eq!(
        web.seen.lock().unwrap().n_ticks,
        0,
        "nothing reached the engine"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_hosts_and_origins_are_checked_before_anything_runs() {
    let mut guarded = options();
    guarded.api_keys = vec!["secret".to_owned()];
    guarded.cors = Cors::Origins(vec!["http://ui.example".to_owned()]);
    let web = Web::start(Behaviour::default(), guarded, vec![ANSWER; 3]).await;
    let body = hello(false).to_string();
    let ask = async |headers: &[(&str, &str)]| {
        web.ask("POST", "/v1/chat/completions", headers, &body)
            .await
            .status
    };
    assert_eq!(ask(&[]).await, 401);
    assert_eq!(ask(&[("x-api-key", "wrong")]).await, 401);
    assert_eq!(ask(&[("x-api-key", "secret")]).await, 200);
    let bearer = ("authorization", "Bearer secret");
    assert_eq!(ask(&[bearer]).await, 200);
    assert_eq!(ask(&[bearer, ("host", "evil.example")]).await, 403);
    assert_eq!(ask(&[bearer, ("origin", "http://evil.example")]).await, 403);
    assert_eq!(web.get("/health").await.status, 200, "health needs no key");
    let page = [bearer, ("origin", "http://ui.example")];
    let answer = web.ask("POST", "/v1/chat/completions", &page, &body).await;
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("http://ui.example")
    );
    let asks = [
        ("origin", "http://ui.example"),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "x-stainless-os, anthropic-version",
        ),
    ];
    let preflight = web.ask("OPTIONS", "/v1/messages", &asks, "").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.header("access-control-allow-headers"),
        Some("x-stainless-os, anthropic-version")
    );
    let refused = web.ask("GET", "/v1/models", &asks[..1], "").await;
    assert_eq!(refused.status, 401);
    assert!(
        refused.header("access-control-allow-origin").is_some(),
        "errors too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_frees_the_engine_and_a_retry_resumes() {
    let behaviour = Behaviour {
        n_slots: 1,
        chunk: 16,
        tick: Duration::from_millis(10),
        context: 8192,
    };
    let web = Web::start(behaviour, options(), ["never", ANSWER]).await;
    let long = "0123456789".repeat(400);
    let body = json!({"messages": [{"role": "user", "content": long}], "stream": true});
    for stream in [true, false] {
        // With and without a stream, and while it waits in the queue, hanging up is enough.
        let mut body = body.clone();
        body["stream"] = json!(stream);
        let before = web.seen.lock().unwrap().n_prefilled;
        let connection = web
            .open("POST", "/v1/chat/completions", &[], &body.to_string())
            .await;
        while web.seen.lock().unwrap().n_prefilled < before + 100 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(connection);
        let hung_up = Instant::now();
        while web.get("/slots").await.json()[0]["is_processing"] == true {
            assert!(
                hung_up.elapsed() < Duration::from_secs(120),
                "stream {stream}: it goes on"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let done = web.seen.lock().unwrap().n_prefilled;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(web.seen.lock().unwrap().n_prefilled, done, "nothing runs");
        if stream {
            continue;
        }
        let mut again = body.clone();
        again["stream"] = json!(false);
        let answer = web.post("/v1/chat/completions", &again).await.json();
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap();
        assert!(
            cached >= 96,
            "a retry goes on where the first try stopped: {usage}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prefills_are_never_silent() {
    let behaviour = Behaviour {
        chunk: 8,
        tick: Duration::from_millis(20),
        ..Behaviour::default()
    };
    let mut quick = options();
    quick.ping_interval = Duration::from_millis(50);
    let web = Web::start(behaviour, quick, vec![ANSWER; 3]).await;
    let content = |first: &str| format!("{first}{}", "0123456789".repeat(30));
    for (path, body, sign) in [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": content("a")}], "stream": true}),
            ": ",
        ),
        (
            "/v1/messages",
            json!({"messages": [{"role": "user", "content": content("b")}], "max_tokens": 9, "stream": true}),
            "event: ping",
        ),
        (
            "/v1/responses",
            json!({"input": content("c"), "stream": true}),
            ": ",
        ),
    ] {
        let answer = web.post(path, &body).await;
        let n_signs = answer
            .body
            .split("\n\n")
            .filter(|e| e.starts_with(sign))
            .count();
        assert!(
            n_signs >= 3,
            "{path}: {n_signs} signs of life in {}",
            answer.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_refused_with_a_time_to_retry() {
    let behaviour = Behaviour {
        n_slots: 1,
        tick: Duration::from_millis(2),
        ..Behaviour::default()
    };
    let mut short = options();
    short.max_queue = 1;
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let web = Web::start(behaviour, short, vec![endless; 2]).await;
    let body = hello(true).to_string();
    let mut running = web.open("POST", "/v1/chat/completions", &[], &body).await;
    read_until(&mut running, "reasoning_content").await;
    let waiting = web.open("POST", "/v1/messages", &[], &body).await;
    while web.get("/health?verbose=1").await.json()["waiting"] != 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for (path, status) in [("/v1/chat/completions", 429), ("/v1/messages", 529)] {
        let answer = web.ask("POST", path, &[], &body).await;
        assert_eq!(answer.status, status, "{path}");
        let seconds = answer.header("retry-after").and_then(|s| s.parse().ok());
        assert!((1..=60).contains(&seconds.expect("a number")), "{path}");
    }
    drop((running, waiting));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_finishes_streams_and_refuses_what_comes() {
    let behaviour = Behaviour {
        tick: Duration::from_millis(5),
        ..Behaviour::default()
    };
    let mut graceful = options();
    graceful.shutdown_grace = Duration::from_secs(2);
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let finite = Script::from("a few words of thought</think>done");
    let mut web = Web::start(behaviour, graceful, [endless, finite]).await;
    let body = hello(true).to_string();
    let mut longer = hello(true);
    longer["max_tokens"] = json!(4000);
    let longer = longer.to_string();
    let mut long = web.open("POST", "/v1/chat/completions", &[], &longer).await;
    read_until(&mut long, "reasoning_content").await;
    let mut short = web.open("POST", "/v1/chat/completions", &[], &body).await;
    read_until(&mut short, "reasoning_content").await;
    web.begin_stop();
    read_until(&mut short, "[DONE]").await;
    let text = read_until(&mut long, "\"error\"").await;
    assert!(text.contains("shutting down"), "{text}");
    assert!(
        TcpStream::connect(web.address).await.is_err(),
        "nobody listens"
    );
    web.server.join();
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_agrees_with_what_a_reply_reports() {
    let web = Web::start(Behaviour::default(), options(), vec![ANSWER; 3]).await;
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    let messages =
        json!({"messages": [{"role": "user", "content": "hi"}], "tools": tools, "max_tokens": 5});
    let counted = web
        .post("/v1/messages/count_tokens?beta=true", &messages)
        .await
        .json();
    let usage = web.post("/v1/messages", &messages).await.json()["usage"].clone();
    let sum: u64 = [
        "input_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
    ]
    .iter()
    .map(|name| usage[name].as_u64().expect(name))
    .sum();
    assert_eq!(counted["input_tokens"], sum);
    let counted = web
        .post("/v1/responses/input_tokens", &json!({"input": "hi"}))
        .await
        .json();
    let usage = web
        .post("/v1/responses", &json!({"input": "hi"}))
        .await
        .json()["usage"]
        .clone();
    assert_eq!(counted["input_tokens"], usage["input_tokens"]);
    let counted = web
        .post("/v1/chat/completions/input_tokens", &hello(false))
        .await
        .json();
    let usage = web.post("/v1/chat/completions", &hello(false)).await.json()["usage"].clone();
    assert_eq!(counted["input_tokens"], usage["prompt_tokens"]);
    let template = web.post("/apply-template", &hello(false)).await.json();
    assert_eq!(template["tokens"], usage["prompt_tokens"]);
    let tokens = web
        .post("/tokenize", &json!({"content": template["prompt"]}))
        .await
        .json();
    assert_eq!(
        tokens["tokens"].as_array().unwrap().len() as u64,
        usage["prompt_tokens"].as_u64().unwrap()
    );
    let text = web.post("/detokenize", &tokens).await.json();
    assert_eq!(text["content"], template["prompt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_responses_are_continued_read_and_deleted() {
    let web = Web::start(
        Behaviour::default(),
        options(),
        vec!["a</think>one", "b</think>two"],
    )
    .await;
    let first = web
        .post("/v1/responses", &json!({"input": "hi"}))
        .await
        .json();
    let id = first["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/responses/{id}");
    assert_eq!(web.get(&path).await.json()["output"], first["output"]);
    let replayed = web.get(&format!("{path}?stream=true")).await;
    let kind = replayed.header("content-type");
    assert_eq!(kind, Some("text/event-stream; charset=utf-8"));
    let events = replayed.events();
    assert_eq!(events[0].0, "response.created");
    let (end, last) = events.last().expect("events");
    assert_eq!(end, "response.completed");
    assert_eq!(last["response"], first);
    let rest = web
        .get(&format!("{path}?stream=true&starting_after=3"))
        .await;
    assert_eq!(rest.events(), events[4..]);
    for query in ["stream=maybe", "stream=true&starting_after=x"] {
        assert_eq!(web.get(&format!("{path}?{query}")).await.status, 400);
    }
    let second = web
        .post(
            "/v1/responses",
            &json!({"input": "go on", "previous_response_id": id, "stream": true}),
        )
        .await;
    let events = second.events();
    let usage = &events.last().unwrap().1["response"]["usage"];
    assert!(
        usage["input_tokens_details"]["cached_tokens"].as_u64() > Some(2),
        "{usage}"
    );
    let items = web
        .get(&format!("/v1/responses/{id}/input_items"))
        .await
        .json();
    assert_eq!(items["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        web.ask("DELETE", &format!("/v1/responses/{id}"), &[], "")
            .await
            .status,
        200
    );
    assert_eq!(web.get(&format!("/v1/responses/{id}")).await.status, 404);
    let lost = web
        .post(
            "/v1/responses",
            &json!({"input": "x", "previous_response_id": id}),
        )
        .await;
    assert_eq!(lost.status, 400);
    assert_eq!(lost.json()["error"]["code"], "previous_response_not_found");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_one_request_after_another() {
    let web = Web::start(Behaviour::default(), options(), Vec::<Script>::new()).await;
    let mut stream = TcpStream::connect(web.address).await.unwrap();
    for _ in 0..3 {
        let request = format!("GET /health HTTP/1.1\r\nhost: {}\r\n\r\n", web.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut stream, "{\"status\":\"ok\"}").await;
    }
}
