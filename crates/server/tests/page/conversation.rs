//! Talking to the model in the page.

use std::time::Duration;

use ds4_server::http::ServerOptions;
use serde_json::{Value, json};

use crate::browser::{Browser, ENTER, ESCAPE, SHIFT};
use crate::script::{Behaviour, Script, tokenizer};
use crate::web::Web;

/// Steps slow enough that a person could watch, and room for more of them than a browser on a busy
/// machine takes to look.
fn slow() -> Behaviour {
    Behaviour {
        tick: Duration::from_millis(10),
        context: 1 << 20,
        ..Behaviour::default()
    }
}

fn endless(text: &str) -> Script {
    Script {
        endless: true,
        ..Script::from(text)
    }
}

async fn start<T: Into<Script>>(behaviour: Behaviour, scripts: impl IntoIterator<Item = T>) -> Web {
    Web::start(behaviour, ServerOptions::default(), scripts).await
}

fn prompt(web: &Web, number: usize) -> String {
    let tokens = web.seen.lock().unwrap().prompts[number].0.clone();
    tokenizer().decode(&tokens).expect("a prompt")
}

async fn slots(web: &Web) -> Vec<Value> {
    let slots = web.get("/slots").await.json();
    slots.as_array().expect("a list").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_appears_while_it_is_written() {
    let web = start(slow(), [endless("</think>on and on")]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("hi");
    assert_eq!(browser.text(".question .text"), "hi");
    browser.wait("document.querySelector('.reply.running .text').textContent.startsWith('on and')");
    assert_eq!(
        browser.run("return document.getElementById('message').value"),
        ""
    );
    assert_eq!(browser.run("return document.activeElement.id"), "message");
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_folded_tells_its_tokens_and_opens() {
    let web = start(Behaviour::default(), ["thought</think>said"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("hi");
    browser.wait_for_reply(1);
    assert_eq!(browser.text(".reply .text"), "said");
    // Seven bytes and the end of the reasoning.
    assert_eq!(
        browser.text(".reasoning summary").trim(),
        "Reasoned for 8 tokens"
    );
    assert_eq!(browser.text(".reasoning-text"), "thought");
    let is_seen = "return document.querySelector('.reasoning-text').checkVisibility()";
    assert_eq!(browser.run(is_seen), false);
    browser.click(".reasoning summary");
    assert_eq!(browser.run(is_seen), true);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_the_work_and_keeps_what_was_said() {
    for by_key in [false, true] {
        let web = start(slow(), [endless("</think>words")]).await;
        let Some(browser) = Browser::open(web.address) else {
            return;
        };
        browser.send("hi");
        browser.wait("document.querySelector('.reply .text').textContent.includes('words')");
        match by_key {
            false => browser.click("#stop"),
            true => browser.type_into("#message", &ESCAPE.to_string()),
        }
        browser.wait_for_reply(1);
        // Nothing is said any more once the server knows.
        while slots(&web)
            .await
            .iter()
            .any(|slot| slot["is_processing"] == true)
        {
            tokio::task::yield_now().await;
        }
        let n_said = web.seen.lock().unwrap().n_decoded;
        let log = web.log.lock().unwrap().join("\n");
        assert!(log.contains("finish=cancelled"), "{log}");
        browser.wait("document.querySelector('.facts').textContent.startsWith('stopped')");
        assert!(browser.text(".reply .text").starts_with("words"));
        let n_decoded = slots(&web).await[0]["last_request"]["generated_tokens"].clone();
        browser.wait(&format!(
            "document.querySelector('.facts').textContent.replaceAll(',', '') \
             === 'stopped · {n_decoded} tokens'"
        ));
        assert_eq!(web.seen.lock().unwrap().n_decoded, n_said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_turn_sends_the_conversation_and_its_slot_goes_on() {
    let web = start(
        Behaviour::default(),
        ["thought</think>first answer", "</think>second answer"],
    )
    .await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.click("#system-button");
    browser.type_into("#system", "Be brief.");
    browser.send("first question");
    browser.wait_for_reply(1);
    browser.send("second question");
    browser.wait_for_reply(2);
    let sent = prompt(&web, 1);
    let at = |what: &str| {
        sent.find(what)
            .unwrap_or_else(|| panic!("no {what:?} in {sent:?}"))
    };
    let places = [
        "Be brief.",
        "first question",
        "first answer",
        "second question",
    ]
    .map(at);
    assert!(places.is_sorted(), "{sent}");
    // What the panel comes to show is what the server says.
    let slot = slots(&web).await[0].clone();
    let last = &slot["last_request"];
    for (part, expected) in [
        (".slot-tokens", format!("{} of 4096 tokens", slot["n_past"])),
        (".prompt", format!("{} tokens", last["prompt_tokens"])),
        (".cached", format!("{} from memory", last["cached_tokens"])),
        (".why", last["why"].as_str().expect("a reason").to_owned()),
    ] {
        browser.wait(&format!(
            "document.querySelector('.slot {part}').textContent.replaceAll(',', '') \
             === {expected:?}.replaceAll(',', '')"
        ));
    }
    browser.wait("document.querySelector('.slot .decode').textContent.endsWith('tokens/s')");
    assert_eq!(browser.text("#model-name"), "Scripted");
    assert_eq!(browser.text("#served"), "Scripted");
    assert_eq!(browser.text("#model-alias"), "deepseek-v4-flash");
    assert_eq!(browser.text("#context"), "4,096 tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn regenerating_asks_again_and_a_new_chat_forgets() {
    let web = start(
        Behaviour::default(),
        ["</think>one", "</think>two", "</think>three"],
    )
    .await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("question");
    browser.wait_for_reply(1);
    browser.click(".regenerate");
    browser.wait("document.querySelector('.reply .text').textContent === 'two'");
    browser.wait_for_reply(1);
    assert_eq!(prompt(&web, 0), prompt(&web, 1));
    browser.click("#new-chat");
    assert_eq!(
        browser.run("return document.querySelector('#conversation').childElementCount"),
        0
    );
    browser.send("other");
    browser.wait_for_reply(1);
    let sent = prompt(&web, 2);
    assert!(
        sent.contains("other") && !sent.contains("question"),
        "{sent}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_read_for_long_shows_how_far_it_is() {
    let behaviour = Behaviour { chunk: 1, ..slow() };
    let web = start(behaviour, ["</think>said"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.run(&format!(
        "document.getElementById('message').value = {:?}",
        "long ".repeat(5000)
    ));
    browser.send("");
    browser.wait("document.querySelector('progress:not([hidden])')?.value > 40");
    let bar =
        browser.run("const bar = document.querySelector('progress'); return [bar.value, bar.max]");
    assert!(
        bar[0].as_f64() < bar[1].as_f64() && bar[1].as_f64() > Some(25_000.0),
        "{bar}"
    );
    assert!(browser.text(".waiting-label").starts_with("Reading "));
    browser.type_into("#message", &ESCAPE.to_string());
    browser.wait_for_reply(1);
    assert_eq!(browser.text(".reply .text"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_of_a_failure_is_shown() {
    let fails = Script {
        fails_at: Some(3),
        ..Script::from("</think>said")
    };
    let web = start(Behaviour::default(), [fails, "</think>well".into()]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("hi");
    browser.wait_for_reply(1);
    let error = browser.text(".error");
    assert!(error.contains("scripted failures"), "{error}");
    browser.click(".regenerate");
    browser.wait("document.querySelector('.reply .text').textContent === 'well'");
    browser.run(&format!(
        "document.getElementById('message').value = {:?}",
        "x".repeat(5000)
    ));
    browser.send("");
    browser.wait_for_reply(2);
    let error = browser.text(".error");
    assert!(
        error.contains("maximum context length is 4096 tokens"),
        "{error}"
    );
    assert!(error.contains("delete earlier ones"), "what to do: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_says_the_place_in_the_queue_or_that_there_is_none() {
    let behaviour = Behaviour {
        n_slots: 1,
        ..slow()
    };
    let options = ServerOptions {
        max_queue: 1,
        max_body_bytes: 4096,
        ..ServerOptions::default()
    };
    let web = Web::start(behaviour, options, [endless("</think>busy")]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    // Somebody else has the only slot.
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true});
    let ask = || web.open("POST", "/v1/chat/completions", &[], body.to_string());
    let mut running = ask().await;
    // One that reads nothing would be taken for gone.
    tokio::spawn(async move { tokio::io::copy(&mut running, &mut tokio::io::sink()).await });
    let says = async |what: String| web.get("/health?verbose=1").await.body.contains(&what);
    while !says("\"running\":1".to_owned()).await {
        tokio::task::yield_now().await;
    }
    browser.send("hi");
    browser.wait(
        "document.querySelector('.waiting-label').textContent \
         === 'Waiting for a slot, place 1 in the queue'",
    );
    browser.type_into("#message", &ESCAPE.to_string());
    browser.wait_for_reply(1);
    // And another one the only place in the queue.
    let waits = |n: usize| format!("\"waiting\":{n}");
    while !says(waits(0)).await {
        tokio::task::yield_now().await;
    }
    let _waiting = ask().await;
    while !says(waits(1)).await {
        tokio::task::yield_now().await;
    }
    browser.send("hi");
    browser.wait_for_reply(2);
    let error = browser.text(".error");
    assert!(
        error.starts_with("The server is busy and its queue is full"),
        "{error}"
    );
    browser.run(&format!(
        "document.getElementById('message').value = {:?}",
        "x".repeat(5000)
    ));
    browser.send("");
    browser.wait_for_reply(3);
    let error = browser.text(".error");
    assert!(
        error.starts_with("The message is too large for the server"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shift_and_enter_break_the_line_and_effort_is_sent() {
    let web = start(Behaviour::default(), ["said"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.run("document.getElementById('thinking').value = 'none'");
    browser.type_into("#message", &format!("one{SHIFT}{ENTER}{SHIFT}two"));
    assert_eq!(
        browser.run("return document.querySelectorAll('.question').length"),
        0
    );
    browser.send("");
    browser.wait_for_reply(1);
    let sent = prompt(&web, 0);
    assert!(sent.contains("one\ntwo"), "{sent:?}");
    assert!(sent.ends_with("</think>"), "no thinking: {sent:?}");
    assert_eq!(browser.text(".reply .text"), "said");
}
