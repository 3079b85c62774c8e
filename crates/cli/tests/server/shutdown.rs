//! Servers that are told to stop.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ds4_engine::store::verify;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::process::{PATIENCE, Running, get, open, post};

/// A reply that goes on until it is stopped.
fn endless(content: &str) -> Value {
    json!({"messages": [{"role": "user", "content": content}], "stream": true, "temperature": 0,
           "ignore_eos": true, "max_tokens": 8000})
}

/// Reads until the text holds `what`, or to the end.
fn read_until(stream: &mut TcpStream, what: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while what.is_empty() || !text.contains(what) {
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => text += &String::from_utf8_lossy(&buffer[..n]),
            _ => break,
        }
    }
    text
}

/// Whether every slot holds something worth keeping.
fn has_begun(address: SocketAddr) -> bool {
    let slots: Value = serde_json::from_str(&get(address, "/slots")).expect("JSON");
    let mut slots = slots.as_array().expect("slots").iter();
    slots.all(|slot| slot["n_past"].as_u64() >= Some(400))
}

#[test]
fn a_server_told_to_stop_says_so_in_every_stream_and_keeps_what_was_computed() {
    let folder = tempfile::tempdir().expect("a folder");
    // A token of the long prompt at a time, so that it is not read before all four are there.
    let flags = ["--parallel", "2", "--shutdown-grace", "0", "--ctx", "16384"];
    let slow = [&flags[..], &["--chunk", "1"]].concat();
    let mut server = Running::start(Some(folder.path()), &slow);
    let address = server.address;
    let words = "seven stones in the river ".repeat(40);
    // One that speaks, one that reads a long prompt, and two that wait.
    let mut speaking = open(address, "/v1/chat/completions", &endless(&words)).expect("open");
    assert!(read_until(&mut speaking, "reasoning_content").contains("200 OK"));
    let long = "a winter letter to the north ".repeat(1000);
    let messages = json!({"messages": [{"role": "user", "content": long}], "stream": true,
                          "max_tokens": 50});
    let mut reading = open(address, "/v1/messages", &messages).expect("open");
    read_until(&mut reading, "message_start");
    let input = json!({"input": "hi", "stream": true});
    let mut waiting = open(address, "/v1/responses", &input).expect("open");
    read_until(&mut waiting, "response.created");
    let whole = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5});
    let asked = std::thread::spawn(move || post(address, "/v1/chat/completions", &whole));
    let begun = Instant::now();
    while !get(address, "/health?verbose=1").contains("\"waiting\":2") || !has_begun(address) {
        assert!(begun.elapsed() < PATIENCE, "{}", server.log());
        std::thread::sleep(Duration::from_millis(2));
    }

    server.signal(Signal::SIGTERM);
    let end = read_until(&mut speaking, "");
    assert!(end.contains("\"code\":\"server_shutdown\""), "{end}");
    assert!(!end.contains("[DONE]"), "{end}");
    let end = read_until(&mut reading, "");
    assert!(end.contains("event: error"), "{end}");
    assert!(end.contains("overloaded_error"), "{end}");
    let end = read_until(&mut waiting, "");
    assert!(end.contains("event: response.failed"), "{end}");
    let (status, body) = asked.join().expect("a thread").expect("an answer");
    assert_eq!((status, &body["error"]["code"]), (503, &json!("loading")));
    assert!(server.ended().success(), "{}", server.log());
    assert_eq!(
        server.log().matches("shutting down").count(),
        4,
        "{}",
        server.log()
    );
    let verified = verify(folder.path()).expect("the folder opens");
    assert!(
        verified.damaged.is_empty() && verified.n_good > 0,
        "{verified:?}"
    );

    // What was computed of both prompts is there for the next server.
    let server = Running::start(Some(folder.path()), &flags);
    for (path, mut body) in [
        ("/v1/chat/completions", endless(&words)),
        ("/v1/messages", messages),
    ] {
        body["stream"] = json!(false);
        body["max_tokens"] = json!(1);
        let (status, answer) = post(server.address, path, &body).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        let usage = &answer["usage"];
        let cached = usage["prompt_cache_hit_tokens"].as_u64();
        let cached = cached.or(usage["cache_read_input_tokens"].as_u64());
        assert!(cached >= Some(64), "{path}: {usage}");
    }
    let log = server.await_lines(2);
    assert_eq!(log.matches("(disk)").count(), 2, "{log}");
    server.stop();
}

#[test]
fn running_requests_may_finish_within_the_grace() {
    let mut server = Running::start(None, &["--shutdown-grace", "60"]);
    let mut body = endless("hi");
    body["max_tokens"] = json!(200);
    let mut stream = open(server.address, "/v1/chat/completions", &body).expect("open");
    read_until(&mut stream, "reasoning_content");
    server.signal(Signal::SIGTERM);
    let end = read_until(&mut stream, "");
    assert!(end.contains("[DONE]"), "{end}");
    assert!(server.ended().success());
}

#[test]
fn a_server_with_nobody_on_standard_error_serves_and_stops() {
    // The number is that of nothing, or the reader has gone.
    for is_closed in [true, false] {
        let home = tempfile::tempdir().expect("a temporary folder");
        // Nobody says which port it took, so it is told one that was free.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let redirection = if is_closed { "2>&-" } else { "" };
        let mut server = Command::new("sh")
            .args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")])
            .arg(env!("CARGO_BIN_EXE_ds4-server"))
            .args(["-t", "2", "-v", "--port", &address.port().to_string()])
            .env("HOME", home.path())
            .env_remove("DS4_MODEL")
            .env_remove("DS4_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        drop(server.stderr.take());
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5});
        let begun = Instant::now();
        let is_answered = || {
            let answer = post(address, "/v1/chat/completions", &body);
            answer.is_ok_and(|(status, _)| status == 200)
        };
        while !is_answered() {
            assert!(begun.elapsed() < PATIENCE, "closed: {is_closed}");
            let ended = server.try_wait().expect("a child");
            assert!(ended.is_none(), "closed: {is_closed}, {ended:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).expect("it lives");
        let status = server.wait().expect("a child");
        assert!(status.success(), "closed: {is_closed}, {status}");
    }
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    for (signal, status) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        let grace = u64::MAX.to_string();
        let mut server = Running::start(None, &["--shutdown-grace", &grace, "--ctx", "65536"]);
        let mut body = endless("hi");
        body["max_tokens"] = json!(60_000);
        let mut stream = open(server.address, "/v1/chat/completions", &body).expect("open");
        read_until(&mut stream, "reasoning_content");
        server.signal(signal);
        server.await_log("stopping");
        server.signal(signal);
        assert_eq!(server.ended().code(), Some(status), "{signal}");
    }
}

#[test]
fn the_small_model_is_called_what_it_is_wherever_a_model_is_named() {
    let server = Running::start(None, &[]);
    let log = server.log();
    for line in [
        "model: ds4 small built-in model",
        ", serving ds4 small built-in model",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // The page shows what /props says.
    for path in ["/v1/models", "/props"] {
        let said = get(server.address, path);
        assert!(said.contains("ds4 small built-in model"), "{path}: {said}");
    }
    server.stop();
}

#[test]
fn a_server_without_requests_stops_with_success() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut server = Running::start(None, &[]);
        server.signal(signal);
        assert!(server.ended().success(), "{signal}");
    }
}

#[test]
fn a_file_that_is_changed_while_it_is_served_ends_the_server_with_a_word() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.gguf");
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");
    let found = std::fs::read_dir(built_in).expect("the models");
    let found = found.map(|entry| entry.expect("an entry").path());
    let found = found.filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    std::fs::copy(found.min().expect("a model"), &model).expect("copied");
    let path = model.to_str().expect("text");

    // Another file in its place is another file.
    let mut server = Running::start(None, &["-m", path]);
    let other = folder.path().join("other.gguf");
    std::fs::copy(&model, &other).expect("copied");
    std::fs::rename(&other, &model).expect("replaced");
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5});
    let answer = post(server.address, "/v1/chat/completions", &body).expect("an answer");
    assert_eq!(answer.0, 200);
    server.signal(Signal::SIGTERM);
    assert!(server.ended().success());

    let mut server = Running::start(None, &["-m", path]);
    let file = std::fs::OpenOptions::new().append(true).open(&model);
    std::io::Write::write_all(&mut file.expect("a file"), b"x").expect("written");
    server.await_log("was changed while it is served");
    assert!(server.ended().success());
}
