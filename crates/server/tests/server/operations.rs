//! What a server tells of itself, and what it can be told.

use crate::http::{ANSWER, hello, options};
use crate::script::{Behaviour, Script};
use crate::web::{Web, read_until};
use ds4_server::http::ServerOptions;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_slots_the_props_and_the_metrics_tell_what_happened() {
    let web = Web::start(Behaviour::default(), options(), vec![ANSWER; 2]).await;
    for _ in 0..2 {
        assert_eq!(
            web.post("/v1/chat/completions", &hello(false)).await.status,
            200
        );
    }
    let slots = web.get("/slots").await.json();
    assert_eq!(slots.as_array().unwrap().len(), 2);
    let story = slots[0]["last_prompt"].as_str().expect("a story");
    assert!(story.contains("1 new"), "{story}");
    assert!(!slots.to_string().contains("hi"), "no text of the prompt");
    let props = web.get("/props").await.json();
    assert_eq!(
        (&props["total_slots"], &props["model_path"]),
        (&json!(2), &json!("scripted.gguf"))
    );
    let metrics = web.get("/metrics").await.body;
    for line in [
        "ds4_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 2",
        "ds4_replies_total{finish=\"stop\"} 2",
        "ds4_first_text_seconds_count 2",
        "ds4_cache_replies_total{source=\"memory\"} 1",
        "ds4_cache_replies_total{source=\"none\"} 1",
        "ds4_inter_token_seconds_count 2",
        "ds4_slots 2",
        "ds4_slots_busy 0",
        "ds4_queue_length 0",
        "ds4_cancelled_total 0",
        "ds4_weights_bytes 2",
        "llamacpp:requests_processing 0",
        "llamacpp:requests_deferred 0",
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "{line} is not in {metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_read_within_the_limit_and_others_refused_by_name() {
    use std::io::Write as _;
    let limited = ServerOptions {
        max_body_bytes: 1 << 16,
        ..options()
    };
    let web = Web::start(Behaviour::default(), limited, vec![ANSWER; 7]).await;
    let gzip = |text: &str| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(text.as_bytes()).expect("memory");
        writer.finish().expect("memory")
    };
    let path = "/v1/chat/completions";
    let body = hello(false).to_string();
    let encoded = [("content-encoding", "gzip")];
    let answer = web.ask("POST", path, &encoded, gzip(&body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let bomb = gzip(&" ".repeat(1 << 20));
    assert!(bomb.len() < 1 << 14);
    let answer = web.ask("POST", path, &encoded, bomb).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    let answer = web.ask("POST", path, &encoded, &body).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    // `{"messages":[{"role":"user","content":"hi"}]}`, by the tools of Python.
    let others: [(&str, &[u8]); 3] = [
        (
            "deflate",
            b"\x78\x9c\xab\x56\xca\x4d\x2d\x2e\x4e\x4c\x4f\x2d\x56\xb2\x8a\xae\x56\x2a\xca\xcf\
              \x49\x55\xb2\x52\x2a\x2d\x4e\x2d\x52\xd2\x51\x4a\xce\xcf\x2b\x49\xcd\x2b\x01\x0a\x64\
              \x64\x2a\xd5\xc6\xd6\x02\x00\x67\xc4\x0f\x6c",
        ),
        (
            "br",
            b"\x1b\x2c\x00\xd8\x8c\xd3\x15\xf3\x23\x84\x75\xaf\x45\xf6\xd2\xb6\x36\x8b\x4e\x57\
              \x1f\x98\xc8\x81\x53\xa0\xc1\xb7\x83\xd4\x32\xa6\xa0\x21\xc7\x84\xb8\x94\x91\x1d\x60\
              \xbc\x77\x37",
        ),
        (
            "zstd",
            b"\x28\xb5\x2f\xfd\x20\x2d\x69\x01\x00\x7b\x22\x6d\x65\x73\x73\x61\x67\x65\x73\x22\x3a\
              \x5b\x7b\x22\x72\x6f\x6c\x65\x22\x3a\x22\x75\x73\x65\x72\x22\x2c\x22\x63\x6f\x6e\x74\
              \x65\x6e\x74\x22\x3a\x22\x68\x69\x22\x7d\x5d\x7d",
        ),
    ];
    for (encoding, bytes) in others {
        let encoded = [("content-encoding", encoding)];
        let answer = web.ask("POST", path, &encoded, bytes).await;
        assert_eq!(answer.status, 200, "{encoding}: {answer:?}");
    }
    let unknown = [("content-encoding", "compress")];
    let answer = web.ask("POST", path, &unknown, &body).await;
    assert_eq!(answer.status, 415, "{answer:?}");
    assert!(answer.body.contains("zstd"), "{answer:?}");
    let plain = [("content-encoding", "identity")];
    let answer = web.ask("POST", path, &plain, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_refused_by_name() {
    let web = Web::start(Behaviour::default(), options(), Vec::<&str>::new()).await;
    for (path, word) in [
        ("/v1/embeddings", "embedding model"),
        ("/embeddings", "embedding model"),
        ("/v1/moderations", "moderations"),
        ("/v1/batches", "one by one"),
        ("/v1/images/generations", "text only"),
        ("/v1/nothing", "nothing at /v1/nothing"),
    ] {
        let answer = web.post(path, &json!({})).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains(word), "{path}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_name_routes_and_nothing_that_clients_make_up() {
    let keyed = ServerOptions {
        api_keys: vec!["key".to_owned()],
        ..options()
    };
    let web = Web::start(Behaviour::default(), keyed, Vec::<&str>::new()).await;
    for path in [
        "/v1/models/a\"} 1\nfake{x=\"",
        "/secret-1",
        "/v1/responses/resp_1/input_items",
        "/v1/cancel/x",
        "/v1/chat/completions/other",
        "/page/chat.js",
        "/v1/%22%0a",
    ] {
        let path = path.replace(['"', '\n', ' ', '{', '}'], "%22");
        for key in ["wrong", "key"] {
            web.ask("GET", &path, &[("x-api-key", key)], "").await;
        }
    }
    let metrics = web.ask("GET", "/metrics", &[("x-api-key", "key")], "");
    let metrics = metrics.await.body;
    let routes = metrics.lines().filter_map(|line| {
        let (_, behind) = line.split_once("route=\"")?;
        behind.split('"').next()
    });
    let routes: std::collections::BTreeSet<&str> = routes.collect();
    let expected = ["/", "/v1/cancel", "/v1/models", "/v1/responses", "other"];
    assert_eq!(
        routes,
        std::collections::BTreeSet::from(expected),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_be_cancelled_by_its_id() {
    let behaviour = Behaviour {
        tick: Duration::from_millis(20),
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let web = Web::start(behaviour, options(), [endless]).await;
    let header = [("x-request-id", "mine")];
    let body = hello(true).to_string();
    let mut stream = web
        .open("POST", "/v1/chat/completions", &header, &body)
        .await;
    let head = read_until(&mut stream, "reasoning_content").await;
    assert!(head.contains("x-request-id: mine"), "{head}");
    assert_eq!(web.post("/v1/cancel/mine", &json!({})).await.status, 200);
    read_until(&mut stream, "\r\n0\r\n\r\n").await;
    assert_eq!(web.post("/v1/cancel/mine", &json!({})).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_can_be_ended_by_the_id_of_the_reply_or_of_the_request() {
    let behaviour = Behaviour {
        tick: Duration::from_millis(20),
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let web = Web::start(behaviour, options(), vec![endless; 2]).await;
    let path = "/v1/chat/completions/control";
    for by_reply in [true, false] {
        let mut body = hello(true);
        body["max_tokens"] = json!(2000);
        let header = [("x-request-id", "mine")];
        let mut stream = web
            .open("POST", "/v1/chat/completions", &header, &body.to_string())
            .await;
        let head = read_until(&mut stream, "reasoning_content").await;
        let id = match by_reply {
            true => head.split("\"id\":\"").nth(1).expect("an id"),
            false => "mine\"",
        };
        let id = id.split('"').next().expect("an id");
        let end = json!({"id": id, "action": "reasoning_end"});
        assert_eq!(web.post(path, &end).await.json()["success"], true);
        read_until(&mut stream, "\"content\":\"a").await;
    }
    for (body, status) in [
        (json!({"id": "nobody", "action": "reasoning_end"}), 404),
        (json!({"id": "mine", "action": "reasoning_start"}), 400),
        (json!({"action": "reasoning_end"}), 400),
    ] {
        assert_eq!(web.post(path, &body).await.status, status, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_the_log_and_the_slots_tell_one_story() {
    let web = Web::start(Behaviour::default(), options(), vec![ANSWER; 3]).await;
    let agent = [
        ("user-agent", "claude-cli/2.1.329 (external, cli)"),
        ("x-session-id", "s-42"),
    ];
    let ask = |text: &str, stream: bool| {
        json!({"messages": [{"role": "user", "content": text}], "stream": stream}).to_string()
    };
    let path = "/v1/chat/completions";
    for (stream, text) in [(true, "hi there"), (true, "hi where"), (false, "hi where")] {
        web.ask("POST", path, &agent, &ask(text, stream)).await;
    }
    // The begin marker is 29 bytes, the user's 11.
    let at = "<｜begin▁of▁sentence｜><｜User｜>hi ".len();
    let why = format!(
        "differs from what slot 0 holds at byte {at} of the prompt, in message 1 of 1 (user \
         text), token 5"
    );
    let answer = web.ask("POST", path, &agent, &ask("hi zhere", true)).await;
    let header = answer.header("x-ds4-cache").expect("on a stream too");
    assert!(
        header.starts_with("cached=5; prompt=12; source=memory; why=\"7 new: "),
        "{header}"
    );
    assert!(header.contains(&why), "{header}");
    let log = web.log.lock().unwrap().clone();
    let line = log.last().expect("a line");
    assert!(
        line.contains(" chat client=claude-cli/2.1.329 session=s-42 prompt=12 cached=5 (memory)"),
        "{line}"
    );
    assert!(line.contains(&why), "{line}");
    let slots = web.get("/slots").await.json();
    let last = &slots[0]["last_request"];
    assert_eq!(last["client"], "claude-cli/2.1.329");
    assert_eq!(last["cached_tokens"], 5);
    assert_eq!(last["finish"], "stop");
    assert!(last["why"].as_str().expect("a reason").contains(&why));
    assert_eq!(last["why"], slots[0]["last_prompt"]);
    assert!(slots[1]["last_request"].is_null(), "nothing ran there");
    let unused = ask("hi zhere", false).replace("\"stream\":false", "\"cache_prompt\":false");
    let answer = web.ask("POST", path, &[], &unused).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        !web.log
            .lock()
            .unwrap()
            .last()
            .expect("a line")
            .contains("client="),
        "nobody said who it was"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_has_everything_and_nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace");
    let mut traced = options();
    traced.trace = Some(std::sync::Arc::new(
        ds4_server::trace::Trace::open(&path).expect("a trace"),
    ));
    let panics = Script {
        panics_at: Some(1),
        ..Script::from("ab")
    };
    let calls = "t</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter \
                 name=\"x\" string=\"true\">secret</｜DSML｜parameter>\n</｜DSML｜invoke>\n\
                 </｜DSML｜tool_calls>";
    let web = Web::start(Behaviour::default(), traced, [Script::from(calls), panics]).await;
    let body = json!({
        "messages": [{"role": "user", "content": "whisper"}],
        "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"properties": {"x": {"type": "string"}}}
        }}],
    });
    web.post("/v1/chat/completions", &body).await;
    web.post("/v1/chat/completions", &body).await;
    let mode = std::fs::metadata(&path).expect("a file").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    web.server.settle();
    let text = std::fs::read_to_string(&path).expect("text");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object per line"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    let prompt = lines[0]["prompt"].as_str().expect("a prompt");
    assert!(
        prompt.ends_with("<｜User｜>whisper<｜Assistant｜><think>"),
        "{prompt}"
    );
    assert_eq!(lines[0]["output"], calls);
    assert_eq!(lines[0]["calls"][0]["arguments"], r#"{"x": "secret"}"#);
    assert_eq!(lines[0]["finish"], "tool_calls");
    assert_eq!(lines[0]["cache"]["source"], "none");
    assert!(
        !lines[0]["constraints"]
            .as_array()
            .expect("a list")
            .is_empty()
    );
    assert_eq!(lines[1]["output"], "a");
    assert!(
        lines[1]["error"]
            .as_str()
            .expect("an error")
            .contains("bug")
    );
    let log = web.log.lock().unwrap().join("\n");
    assert!(!log.contains("whisper") && !log.contains("secret"), "{log}");
}
