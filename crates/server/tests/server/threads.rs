//! Conversations that a client goes on with by the id of their last message.

use ds4_engine::store::{TurnLog, TurnLogOptions};
use serde_json::{Value, json};

use crate::http::options;
use crate::script::{Behaviour, ScriptedSource, tokenizer};
use crate::web::{Answer, Web};

const MESSAGES: &str = "/v1/messages";

fn create(thread: bool) -> Value {
    let mut body = json!({
        "max_tokens": 500, "system": "be brief",
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "string"}}}}],
        "messages": [{"role": "user", "content": "hi"}],
    });
    if thread {
        body["thread"] = json!({"type": "create"});
    }
    body
}

fn go_on(id: &str, messages: Value) -> Value {
    json!({"max_tokens": 500, "messages": messages,
           "thread": {"type": "continue", "previous_message_id": id}})
}

/// The id of a message, whole or streamed.
fn id_of(answer: &Answer) -> String {
    let message = match answer.body.starts_with("event") {
        true => answer.events()[0].1["message"].clone(),
        false => answer.json(),
    };
    message["id"].as_str().expect("an id").to_owned()
}

fn call() -> String {
    crate::bench::block(&[("f", "y")])
}

/// A conversation of three turns, the second of which calls a tool, as its scripts.
fn scripts() -> Vec<String> {
    vec![
        "why</think>hello".to_owned(),
        format!("so</think>{}", call()),
        "then</think>done".to_owned(),
    ]
}

async fn web(log: Option<TurnLog>, scripts: Vec<String>) -> Web {
    let web = Web::loading(options()).await;
    let scripts = scripts.iter().map(|text| text.as_str().into()).collect();
    let behaviour = Behaviour::default();
    let source = ScriptedSource::new(
        tokenizer(),
        behaviour.clone(),
        std::sync::Arc::new(std::sync::Mutex::new(scripts)),
        std::sync::Arc::clone(&web.seen),
    );
    web.load_with_log(source, &behaviour, log);
    web
}

/// The prompts of the conversation when all of it is sent with every turn.
async fn prompts_of_whole_conversations() -> Vec<Vec<u32>> {
    let web = web(None, scripts()).await;
    let mut body = create(false);
    for turn in 0..3 {
        let answer = web.post(MESSAGES, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let content = answer.json()["content"].clone();
        let next = match turn {
            0 => json!("use f"),
            _ => json!([{"type": "tool_result", "tool_use_id": content[1]["id"], "content": "42"}]),
        };
        let messages = body["messages"].as_array_mut().expect("messages");
        messages.push(json!({"role": "assistant", "content": content}));
        messages.push(json!({"role": "user", "content": next}));
    }
    let seen = web.seen.lock().expect("seen");
    seen.prompts
        .iter()
        .map(|(tokens, _)| tokens.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_is_the_conversation_that_its_client_would_have_sent() {
    let expected = prompts_of_whole_conversations().await;
    for (stream, display) in [
        (false, "summarized"),
        (true, "summarized"),
        (true, "omitted"),
    ] {
        let web = web(None, scripts()).await;
        let with = |mut body: Value| {
            body["stream"] = json!(stream);
            body["thinking"] = json!({"type": "adaptive", "display": display});
            body
        };
        let first = web.post(MESSAGES, &with(create(true))).await;
        let user = json!([{"role": "user", "content": "use f"}]);
        let second = web.post(MESSAGES, &with(go_on(&id_of(&first), user))).await;
        assert_eq!(second.status, 200, "{second:?}");
        let id = match stream {
            true => {
                let events = second.events();
                let mut starts = events.iter().map(|(_, data)| &data["content_block"]);
                let call = starts.find(|block| block["type"] == "tool_use");
                call.expect("a call")["id"].clone()
            }
            false => second.json()["content"][1]["id"].clone(),
        };
        let result = json!({"type": "tool_result", "tool_use_id": id, "content": "42"});
        let results = json!([{"role": "user", "content": [result]}]);
        let third = web
            .post(MESSAGES, &with(go_on(&id_of(&second), results)))
            .await;
        assert_eq!(third.status, 200, "{third:?}");
        let seen = web.seen.lock().expect("seen");
        let prompts: Vec<&Vec<u32>> = seen.prompts.iter().map(|(tokens, _)| tokens).collect();
        assert_eq!(prompts, expected.iter().collect::<Vec<_>>());
        for (prompt, n_cached) in &seen.prompts[1..] {
            assert!(prompt.len() - n_cached < 60, "only what is new is computed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_outlives_the_server_where_turns_do() {
    let expected = prompts_of_whole_conversations().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("turns");
    let log = || TurnLog::open(&path, TurnLogOptions::default()).expect("a log");
    let mut scripts = scripts();
    let last = scripts.split_off(2);
    let first = web(Some(log()), scripts).await;
    let id = id_of(&first.post(MESSAGES, &create(true)).await);
    let user = json!([{"role": "user", "content": "use f"}]);
    let second = first.post(MESSAGES, &go_on(&id, user)).await.json();
    first.server.settle();
    drop(first);

    let again = web(Some(log()), last).await;
    let id = second["id"].as_str().expect("an id");
    let call = &second["content"][1]["id"];
    let results = json!([{"role": "user", "content":
        [{"type": "tool_result", "tool_use_id": call, "content": "42"}]}]);
    let third = again.post(MESSAGES, &go_on(id, results)).await;
    assert_eq!(third.status, 200, "{third:?}");
    let seen = again.seen.lock().expect("seen");
    assert_eq!(seen.prompts[0].0, expected[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_thread_is_told_by_the_codes_that_clients_act_on() {
    let web = web(None, scripts()).await;
    let user = json!([{"role": "user", "content": "more"}]);
    let lost = web
        .post(MESSAGES, &go_on("msg_unknown", user.clone()))
        .await;
    assert_eq!(lost.status, 404, "{lost:?}");
    let error = &lost.json()["error"];
    assert_eq!(error["type"], "not_found_error");
    assert_eq!(error["details"]["error_code"], "thread_not_found");
    // A message that was no part of a thread is not kept.
    let plain = id_of(&web.post(MESSAGES, &create(false)).await);
    let lost = web.post(MESSAGES, &go_on(&plain, user.clone())).await;
    assert_eq!(lost.status, 404, "{lost:?}");

    let id = id_of(&web.post(MESSAGES, &create(true)).await);
    let mut same = go_on(&id, user.clone());
    same["system"] = json!("be brief");
    let counted = web.post("/v1/messages/count_tokens", &same).await;
    assert_eq!(counted.status, 200, "{counted:?}");
    let mut other = same.clone();
    other["system"] = json!("be long");
    let refused = web.post(MESSAGES, &other).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let details = &refused.json()["error"]["details"];
    assert_eq!(details["error_code"], "thread_fingerprint_mismatch");
    let mut wrong = same.clone();
    wrong["thread"] = json!({"type": "fork"});
    assert_eq!(web.post(MESSAGES, &wrong).await.status, 400);
    // A message can be gone on from more than once.
    for _ in 0..2 {
        assert_eq!(web.post(MESSAGES, &same).await.status, 200);
    }
}
