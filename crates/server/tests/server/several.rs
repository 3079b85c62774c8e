//! Several choices of a reply, several prompts of a request, and many requests at once.

use std::sync::Arc;
use std::time::Duration;

use ds4_server::http::ServerOptions;
use serde_json::{Value, json};

use crate::http::{hello, options};
use crate::script::{Behaviour, Script};
use crate::web::{Answer, Web, read_until};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Text and finish reason of every choice of a stream, by index, and the chunks without choices.
fn choices_of(answer: &Answer, n: usize) -> (Vec<(String, String)>, Vec<Value>) {
    let mut choices = vec![(String::new(), String::new()); n];
    let mut others = Vec::new();
    let events = answer.events();
    let (end, chunks) = events.split_last().expect("chunks");
    assert_eq!(end.0, "[DONE]");
    for (_, chunk) in chunks {
        assert_eq!(chunk["id"], chunks[0].1["id"]);
        let Some(choice) = chunk["choices"].get(0) else {
            others.push(chunk.clone());
            continue;
        };
        let (text, finish) = &mut choices[choice["index"].as_u64().expect("an index") as usize];
        for piece in [&choice["delta"]["content"], &choice["text"]] {
            text.push_str(piece.as_str().unwrap_or_default());
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert_eq!(finish, "", "one end");
            finish.push_str(reason);
        }
    }
    (choices, others)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_has_as_many_choices_as_it_is_asked_for_and_its_prompt_counts_once() {
    let one_slot = Behaviour {
        n_slots: 1,
        ..Behaviour::default()
    };
    let web = Web::start(
        one_slot,
        options(),
        ["a</think>one", "b</think>two", "c</think>three"],
    );
    let web = web.await;
    let mut body = hello(false);
    body["n"] = json!(3);
    let whole = web.post(CHAT, &body).await;
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    let choices = whole["choices"].as_array().expect("choices");
    for (i, (choice, said)) in choices.iter().zip(["one", "two", "three"]).enumerate() {
        assert_eq!(choice["index"], i);
        assert_eq!(choice["message"]["content"], said);
        assert_eq!(choice["finish_reason"], "stop");
    }
    assert_eq!(choices.len(), 3);
    let seen = web.seen.lock().expect("seen");
    let n_prompt = seen.prompts[0].0.len();
    assert_eq!(whole["usage"]["prompt_tokens"], n_prompt);
    let n_said: usize = ["a?one", "b?two", "c?three"]
        .iter()
        .map(|text| text.len())
        .sum();
    assert_eq!(whole["usage"]["completion_tokens"], n_said);
    // The slot goes on from the end of the prompt.
    assert_eq!(seen.prompts[1].1, n_prompt - 1);
    assert_eq!(seen.prompts[2].1, n_prompt - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_streamed_side_by_side_with_one_end() {
    for (usage, n_others) in [(json!(null), 0), (json!({"include_usage": true}), 1)] {
        let web = Web::start(
            Behaviour::default(),
            options(),
            ["a</think>one", "b</think>two"],
        );
        let web = web.await;
        let mut body = hello(true);
        body["n"] = json!(2);
        body["stream_options"] = usage;
        let (choices, others) = choices_of(&web.post(CHAT, &body).await, 2);
        let stop = || "stop".to_owned();
        assert_eq!(
            choices,
            [("one".to_owned(), stop()), ("two".to_owned(), stop())]
        );
        assert_eq!(others.len(), n_others);
        for chunk in others {
            assert_eq!(chunk["usage"]["completion_tokens"], 10, "{chunk}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_prompts_have_their_choices_one_prompt_behind_the_other() {
    for stream in [false, true] {
        let scripts = ["1", "2", "3", "4"];
        let one_slot = Behaviour {
            n_slots: 1,
            ..Behaviour::default()
        };
        let web = Web::start(one_slot, options(), scripts).await;
        let body = json!({"prompt": ["ab", "cd"], "n": 2, "echo": true, "stream": stream,
                          "stream_options": {"include_usage": true}});
        let answer = web.post(COMPLETIONS, &body).await;
        let (texts, usage): (Vec<String>, Value) = match stream {
            true => {
                let (choices, others) = choices_of(&answer, 4);
                let texts = choices.into_iter().map(|(text, _)| text);
                (texts.collect(), others[0]["usage"].clone())
            }
            false => {
                let body = answer.json();
                let choices = body["choices"].as_array().expect("choices");
                let text = |choice: &Value| choice["text"].as_str().expect("text").to_owned();
                (choices.iter().map(text).collect(), body["usage"].clone())
            }
        };
        assert_eq!(texts, ["ab1", "ab2", "cd3", "cd4"]);
        // A begin-of-sentence token and two bytes, twice.
        assert_eq!(usage["prompt_tokens"], 6);
        assert_eq!(usage["completion_tokens"], 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_choices_than_there_is_room_for_are_refused_and_none_is_begun() {
    let mut short = options();
    short.max_queue = 3;
    let one_slot = Behaviour {
        n_slots: 1,
        ..Behaviour::default()
    };
    let web = Web::start(one_slot, short, ["one"]).await;
    for (path, body, named) in [
        (
            CHAT,
            json!({"n": 9, "messages": [{"role": "user", "content": "hi"}]}),
            "n: ",
        ),
        (
            CHAT,
            json!({"n": 5, "messages": [{"role": "user", "content": "hi"}]}),
            "at most 4",
        ),
        (
            COMPLETIONS,
            json!({"n": 2, "best_of": 3, "prompt": "x"}),
            "best_of",
        ),
        (
            COMPLETIONS,
            json!({"prompt": vec!["x"; 33]}),
            "at most 32 prompts",
        ),
    ] {
        let answer = web.post(path, &body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.contains(named), "{answer:?}");
    }
    assert_eq!(web.seen.lock().expect("seen").prompts.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_several_choices_is_given_up_as_one() {
    // Slow enough that it does not come to its end before it is given up.
    let behaviour = Behaviour {
        tick: Duration::from_millis(20),
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let web = Web::start(behaviour, options(), [endless.clone(), endless]).await;
    let mut body = hello(true);
    body["n"] = json!(2);
    body["max_tokens"] = json!(4000);
    let headers = [("x-request-id", "both")];
    let mut stream = web.open("POST", CHAT, &headers, body.to_string()).await;
    read_until(&mut stream, "reasoning_content").await;
    let cancelled = web.post("/v1/cancel/both", &json!({})).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    read_until(&mut stream, "request_cancelled").await;
    while web.get("/health?verbose=1").await.json()["running"] != 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Asks until it is not told to come again, each time after the time that it is told.
async fn ask_as_sdks_do(web: &Web, path: &str) -> u16 {
    loop {
        let answer = web.ask("POST", path, &[], hello(false).to_string()).await;
        if !matches!(answer.status, 429 | 529) {
            return answer.status;
        }
        let seconds = answer.header("retry-after").and_then(|s| s.parse().ok());
        tokio::time::sleep(Duration::from_secs(seconds.expect("a number"))).await;
    }
}

/// That two retries are enough, as the SDKs have, is shown where time is counted and not passed:
/// `of_120_calls_at_once_on_4_slots_none_is_lost` of the worker.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_calls_at_once_none_is_lost() {
    const N_CALLS: usize = 120;
    let behaviour = Behaviour {
        n_slots: 4,
        tick: Duration::from_millis(1),
        ..Behaviour::default()
    };
    // As it is by default, and with a queue that is too short for all.
    for max_queue in [ServerOptions::default().max_queue, 64] {
        let mut options = options();
        options.max_queue = max_queue;
        let scripts = vec!["a</think>hello"; N_CALLS];
        let web = Arc::new(Web::start(behaviour.clone(), options, scripts).await);
        // So that it is known how long a reply takes.
        let first = web.post(CHAT, &hello(false)).await;
        assert_eq!(first.status, 200);
        let mut calls = tokio::task::JoinSet::new();
        for i in 1..N_CALLS {
            let web = Arc::clone(&web);
            let path = [CHAT, "/v1/messages"][i % 2];
            calls.spawn(async move { ask_as_sdks_do(&web, path).await });
        }
        while let Some(call) = calls.join_next().await {
            assert_eq!(call.expect("no panic"), 200);
        }
    }
}
