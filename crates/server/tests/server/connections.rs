//! Clients that are slow, silent, hasty or gone, on real sockets.

use std::collections::VecDeque;
use std::time::Duration;

use ds4_server::http::ServerOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::script::{Behaviour, Script};
use crate::web::{Answer, Web, read_until};

const CHAT: &str = "/v1/chat/completions";
/// Longer than any test waits.
const NEVER: Duration = Duration::from_secs(600);

fn options(read_timeout: Duration, write_stall: Duration) -> ServerOptions {
    ServerOptions {
        read_timeout,
        write_stall,
        max_body_bytes: 1 << 20,
        yields_after: NEVER,
        ping_interval: Duration::ZERO,
        ..ServerOptions::default()
    }
}

async fn patient() -> Web {
    let scripts = vec!["a</think>b"; 8];
    Web::start(Behaviour::default(), options(NEVER, NEVER), scripts).await
}

/// A reply without an end, of which every token is much text.
fn flood() -> (Behaviour, Script, Value) {
    let behaviour = Behaviour {
        n_slots: 1,
        context: 1 << 30,
        tick: Duration::from_micros(200),
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("</think>a")
    };
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true,
                      "max_tokens": 1 << 18, "logprobs": true, "top_logprobs": 20});
    (behaviour, endless, body)
}

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9})
}

/// A POST as it is written.
fn post(web: &Web, path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n{body}",
        web.address
    )
}

async fn connect(web: &Web) -> TcpStream {
    TcpStream::connect(web.address).await.expect("it listens")
}

/// A connection that takes next to nothing before it is read.
async fn narrow(web: &Web, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a size");
    let mut stream = socket.connect(web.address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// Everything that comes until the server hangs up.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut bytes));
    // A connection that is reset has ended too.
    let _ = read.await.expect("the server hangs up");
    bytes
}

async fn exchange(web: &Web, bytes: impl AsRef<[u8]>) -> Answer {
    let mut stream = connect(web).await;
    stream.write_all(bytes.as_ref()).await.expect("sent");
    Answer::parse(&rest(&mut stream).await)
}

/// Waits until nothing runs or waits.
async fn idle(web: &Web) {
    let is_idle = async || {
        let health = web.get("/health?verbose=1").await.json();
        health["running"] == 0 && health["waiting"] == 0
    };
    let until = async {
        while !is_idle().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let until = tokio::time::timeout(Duration::from_secs(120), until);
    until.await.expect("the work for nobody ends");
    for slot in web.get("/slots").await.json().as_array().expect("slots") {
        assert_eq!(slot["is_processing"], false);
    }
}

async fn works(web: &Web) {
    let answer = web.post(CHAT, &hello()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_a_timeout_in_the_apis_words() {
    let quick = options(Duration::from_millis(200), NEVER);
    let web = Web::start(Behaviour::default(), quick, ["a</think>b"; 3]).await;
    for (path, member, kind) in [
        (CHAT, "code", "request_timeout"),
        ("/v1/responses", "code", "request_timeout"),
        ("/v1/messages", "type", "timeout_error"),
        ("/tokenize", "type", "timeout_error"),
    ] {
        for begun in ["", "{\"messages\": ["] {
            let request = post(&web, path, "content-length: 100\r\n", begun);
            let answer = exchange(&web, request).await;
            assert_eq!(answer.status, 408, "{path}: {answer:?}");
            assert_eq!(answer.json()["error"][member], kind, "{path}");
        }
        // Headers that do not end, and a connection that says nothing, are just closed.
        for begun in ["", "POST ", "POST /v1/messages HTTP/1.1\r\nhost: x"] {
            let mut stream = connect(&web).await;
            stream.write_all(begun.as_bytes()).await.expect("sent");
            assert!(rest(&mut stream).await.is_empty(), "{begun:?}");
        }
    }
    assert_eq!(web.seen.lock().unwrap().n_ticks, 0);
    works(&web).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_is_read() {
    let web = patient().await;
    let body = hello().to_string();
    let headers = format!("connection: close\r\ncontent-length: {}\r\n", body.len());
    let mut stream = connect(&web).await;
    for byte in post(&web, CHAT, &headers, &body).into_bytes() {
        stream.write_all(&[byte]).await.expect("sent");
        tokio::task::yield_now().await;
    }
    assert_eq!(Answer::parse(&rest(&mut stream).await).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_and_bodies_on_demand_are_read_within_the_same_limits() {
    let web = patient().await;
    let body = hello().to_string();
    let (one, two) = body.split_at(7);
    let chunked = "connection: close\r\ntransfer-encoding: chunked\r\n";
    let pieces = format!(
        "{:x}\r\n{one}\r\n{:x};x=y\r\n{two}\r\n0\r\n\r\n",
        one.len(),
        two.len()
    );
    let answer = exchange(&web, post(&web, CHAT, chunked, &pieces)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = exchange(&web, post(&web, CHAT, chunked, "x\r\nnot a length\r\n")).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let large = format!("{:x}\r\n{}\r\n0\r\n\r\n", 3 << 20, " ".repeat(3 << 20));
    let answer = exchange(&web, post(&web, CHAT, chunked, &large)).await;
    assert_eq!(answer.status, 413, "{answer:?}");

    // A client that asks first is told to go on, or why not.
    let expects = |n: usize| {
        let headers =
            format!("connection: close\r\nexpect: 100-continue\r\ncontent-length: {n}\r\n");
        post(&web, CHAT, &headers, "")
    };
    let mut stream = connect(&web).await;
    let head = expects(body.len());
    stream.write_all(head.as_bytes()).await.expect("sent");
    let told = read_until(&mut stream, "\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 100 "), "{told}");
    stream.write_all(body.as_bytes()).await.expect("sent");
    assert_eq!(Answer::parse(&rest(&mut stream).await).status, 200);
    assert_eq!(exchange(&web, expects(2 << 20)).await.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn header_floods_and_what_is_not_http_are_refused() {
    let web = patient().await;
    let get = format!("GET /health HTTP/1.1\r\nhost: {}\r\n", web.address);
    let close = "connection: close\r\n\r\n";
    let long = format!("{get}x-long: {}\r\n{close}", "y".repeat(70 << 10));
    let answer = exchange(&web, long).await;
    assert_eq!(answer.status, 431);
    assert_eq!(answer.json()["error"]["code"], "header_too_large");
    let many: String = (0..300).map(|i| format!("x-{i}: y\r\n")).collect();
    assert_eq!(
        exchange(&web, format!("{get}{many}{close}")).await.status,
        431
    );
    let endless = format!("{get}x-long: {}", "y".repeat(1 << 20));
    assert_eq!(exchange(&web, endless).await.status, 431);
    let length = "content-length: 3\r\ncontent-length: 4\r\n";
    for (what, bytes) in [
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        ),
        ("a bad line", b"GET\r\n\r\n".to_vec()),
        ("two lengths", post(&web, CHAT, length, "abcd").into_bytes()),
        (
            "a bad length",
            post(&web, CHAT, "content-length: x\r\n", "").into_bytes(),
        ),
        (
            "a bad header",
            format!("{get}a b: c\r\n{close}").into_bytes(),
        ),
    ] {
        assert_eq!(exchange(&web, bytes).await.status, 400, "{what}");
    }
    assert_eq!(web.seen.lock().unwrap().n_ticks, 0);
    works(&web).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_before_their_answers_are_answered_in_order() {
    let web = patient().await;
    let body = hello().to_string();
    let mut streamed = hello();
    streamed["stream"] = json!(true);
    let streamed = streamed.to_string();
    let length = |body: &str| format!("content-length: {}\r\n", body.len());
    let last = format!(
        "GET /version HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        web.address
    );
    let all = [
        format!("GET /health HTTP/1.1\r\nhost: {}\r\n\r\n", web.address),
        post(&web, CHAT, &length(&body), &body),
        post(&web, CHAT, &length("{"), "{"),
        post(&web, CHAT, &length(&streamed), &streamed),
        last,
    ];
    let mut stream = connect(&web).await;
    stream
        .write_all(all.concat().as_bytes())
        .await
        .expect("sent");
    let text = String::from_utf8(rest(&mut stream).await).expect("text");
    let mut from = 0;
    for sign in [
        "{\"status\":\"ok\"}",
        "\"object\":\"chat.completion\"",
        "HTTP/1.1 400",
        "data: [DONE]",
        "{\"version\":",
    ] {
        let at = text[from..].find(sign);
        from += at.unwrap_or_else(|| panic!("{sign} is not behind byte {from} of {text}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_half_or_in_the_middle_leaves_nothing_running() {
    let (behaviour, endless, body) = flood();
    let scripts = vec![endless; 4];
    let web = Web::start(behaviour, options(NEVER, NEVER), scripts).await;
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    for body in [body.to_string(), whole.to_string()] {
        // Half: it reads, and says that it will send no more.
        let mut half = web.open("POST", CHAT, &[], &body).await;
        while web.get("/slots").await.json()[0]["next_token"]["n_decoded"] == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        half.shutdown().await.expect("half closed");
        idle(&web).await;
        // In the middle of the body.
        let length = format!("content-length: {}\r\n", body.len());
        let begun = post(&web, CHAT, &length, &body[..body.len() / 2]);
        let mut stream = connect(&web).await;
        stream.write_all(begun.as_bytes()).await.expect("sent");
        drop(stream);
        idle(&web).await;
    }
    assert_eq!(web.seen.lock().unwrap().prompts.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_as_good_as_gone() {
    let (behaviour, endless, body) = flood();
    let quick = options(NEVER, Duration::from_millis(100));
    let web = Web::start(behaviour, quick, [endless]).await;
    let body = body.to_string();
    let length = format!("content-length: {}\r\n", body.len());
    let mut stream = narrow(&web, &post(&web, CHAT, &length, &body)).await;
    read_until(&mut stream, "data: ").await;
    idle(&web).await;
    let bytes = rest(&mut stream).await;
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "the connection was cut");

    // The same holds of an answer in one piece that is larger than what the system keeps.
    let long = json!({"content": "a".repeat(1 << 19), "with_pieces": true}).to_string();
    let length = format!("content-length: {}\r\n", long.len());
    let mut stream = narrow(&web, &post(&web, "/tokenize", &length, &long)).await;
    read_until(&mut stream, "\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bytes = rest(&mut stream).await;
    assert!(!bytes.ends_with(b"]}"), "the connection was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_slow_client_is_bounded_and_its_end_says_why() {
    let (behaviour, endless, body) = flood();
    let web = Web::start(behaviour, options(NEVER, NEVER), [endless]).await;
    let body = body.to_string();
    let headers = format!("connection: close\r\ncontent-length: {}\r\n", body.len());
    let mut stream = narrow(&web, &post(&web, CHAT, &headers, &body)).await;
    // Nobody reads, nothing times out, and the reply would go on for ever.
    read_until(&mut stream, "data: ").await;
    idle(&web).await;
    let bytes = rest(&mut stream).await;
    // 4 MiB wait in the server; the system's buffers hold some more.
    assert!(bytes.len() < 24 << 20, "{} bytes were kept", bytes.len());
    let end = String::from_utf8_lossy(&bytes[bytes.len() - 400..]);
    assert!(end.contains("wait to be read"), "{end}");
    assert!(end.contains("\"code\":\"server_error\""), "{end}");
    assert!(end.ends_with("0\r\n\r\n"), "{end}");
    assert!(!end.contains("[DONE]"), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_told_so() {
    let few = ServerOptions {
        max_connections: 2,
        ..options(NEVER, NEVER)
    };
    let web = Web::start(Behaviour::default(), few, ["a</think>b"]).await;
    let get = format!("GET /health HTTP/1.1\r\nhost: {}\r\n\r\n", web.address);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(&web).await;
        stream.write_all(get.as_bytes()).await.expect("sent");
        read_until(&mut stream, "{\"status\":\"ok\"}").await;
        held.push(stream);
    }
    let refused = web.post(CHAT, &hello()).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.json()["error"]["code"], "too_many_connections");
    let length = refused.header("content-length").expect("a length");
    assert_eq!(length, refused.body.len().to_string());
    drop(held);
    while web.get("/health").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    works(&web).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_send_slowly_make_room_for_those_who_ask() {
    let few = ServerOptions {
        max_connections: 3,
        yields_after: Duration::ZERO,
        ..options(NEVER, NEVER)
    };
    let (behaviour, endless, body) = flood();
    let endless = vec![
        endless,
        Script::from("a</think>b"),
        Script::from("a</think>b"),
    ];
    let behaviour = Behaviour {
        n_slots: 2,
        ..behaviour
    };
    let web = Web::start(behaviour, few, endless).await;
    // One whose answer is being made, and many that have begun a request or said nothing.
    let mut running = web.open("POST", CHAT, &[], &body.to_string()).await;
    read_until(&mut running, "data: ").await;
    let headers = "content-length: 100\r\nexpect: 100-continue\r\n";
    let begun = post(&web, CHAT, headers, "{\"messages\": [");
    let mut slow = VecDeque::new();
    let mut told = Vec::new();
    for said in [&*begun, "", "POST /v1/mess", &*begun, &*begun] {
        let mut stream = connect(&web).await;
        stream.write_all(said.as_bytes()).await.expect("sent");
        if slow.len() == 2 {
            // The one that has waited longest makes room for it.
            let mut first: TcpStream = slow.pop_front().expect("two of them");
            told.push(String::from_utf8(rest(&mut first).await).expect("text"));
        }
        if said == begun {
            read_until(&mut stream, "100 Continue").await;
        }
        slow.push_back(stream);
    }
    // Those who ask take the last two places, and keep them.
    let mut askers = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(&web).await;
        let body = hello().to_string();
        let length = format!("content-length: {}\r\n", body.len());
        let ask = post(&web, CHAT, &length, &body);
        stream.write_all(ask.as_bytes()).await.expect("sent");
        read_until(&mut stream, "HTTP/1.1 200 ").await;
        askers.push(stream);
    }
    // Those that made room are closed, and told why if they had asked for something.
    for mut stream in slow {
        told.push(String::from_utf8(rest(&mut stream).await).expect("text"));
    }
    for (index, told) in told.iter().enumerate() {
        if [1, 2].contains(&index) {
            assert_eq!(told, "", "{index}");
        } else {
            assert!(told.contains("HTTP/1.1 408 "), "{index}: {told}");
            assert!(told.contains("its place went to another"), "{told}");
        }
    }
    read_until(&mut running, "data: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_answer_is_being_made_a_newcomer_is_told_so() {
    let one = ServerOptions {
        max_connections: 1,
        yields_after: Duration::ZERO,
        ..options(NEVER, NEVER)
    };
    let (behaviour, endless, body) = flood();
    let web = Web::start(behaviour, one, [endless]).await;
    let mut running = web.open("POST", CHAT, &[], &body.to_string()).await;
    read_until(&mut running, "data: ").await;
    assert_eq!(web.get("/health").await.status, 503);
    read_until(&mut running, "data: ").await;
}
