//! What the browser keeps, and what is done with it.

use ds4_server::http::ServerOptions;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::script::{Behaviour, tokenizer};
use crate::web::Web;

async fn start(scripts: impl IntoIterator<Item = &'static str>) -> Web {
    Web::start(Behaviour::default(), ServerOptions::default(), scripts).await
}

fn prompt(web: &Web, number: usize) -> String {
    let tokens = web.seen.lock().unwrap().prompts[number].0.clone();
    tokenizer().decode(&tokens).expect("a prompt")
}

fn n_of(browser: &Browser, css: &str) -> Value {
    browser.run(&format!("return document.querySelectorAll({css:?}).length"))
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_turns_survive_a_reload_and_a_restart_of_the_server() {
    let behaviour = || Behaviour {
        context: 16_384,
        ..Behaviour::default()
    };
    let mut web = Web::start(behaviour(), ServerOptions::default(), ["</think>again"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    // Typed by hand they would take a while; the last one is.
    browser.run(
        "const turns = Array.from({length: 98}, (_, i) => i % 2 === 0 \
           ? {role: 'user', content: `question ${i / 2}`} \
           : {role: 'assistant', content: `answer ${(i - 1) / 2}`, reasoning: 'thought', \
              n_reasoning: 2, facts: 'two tokens'}); \
         localStorage.setItem('ds4.chat.long', JSON.stringify({id: 'long', title: 'long', \
           updated: Date.now(), system: 'Be brief.', turns})); \
         sessionStorage.setItem('ds4.current', 'long')",
    );
    browser.reload();
    assert_eq!(n_of(&browser, ".question"), 49);
    browser.send("question 49");
    browser.wait_for_reply(50);
    let sent = prompt(&web, 0);
    for part in [
        "Be brief.",
        "question 0",
        "answer 48",
        "thought",
        "question 49",
    ] {
        assert!(sent.contains(part), "{part} is not in {sent}");
    }

    web.begin_stop();
    browser.wait("document.getElementById('summary').textContent === 'no answer'");
    browser.send("is anybody there?");
    browser.wait_for_reply(51);
    let error = browser.text(".error");
    assert!(error.contains("Is ds4-server still running"), "{error}");

    let address = web.address;
    let web = Web::loading_at(address, ServerOptions::default()).await;
    web.load(behaviour(), ["</think>back"]);
    browser.reload();
    assert_eq!(n_of(&browser, ".question"), 51);
    assert_eq!(
        browser.run("return document.querySelector('.question .text').textContent"),
        "question 0"
    );
    assert_eq!(
        browser.run("return document.getElementById('system').value"),
        "Be brief."
    );
    browser.wait("document.getElementById('summary').textContent === 'idle'");
    browser.click(".reply:last-child .regenerate");
    browser.wait("[...document.querySelectorAll('.reply .text')].at(-1).textContent === 'back'");
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_are_listed_opened_and_deleted() {
    let web = start(["</think>one", "</think>two", "</think>three"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("first talk");
    browser.wait_for_reply(1);
    browser.click("#new-chat");
    browser.send("second talk");
    browser.wait_for_reply(1);
    browser.click("#chats-button");
    let titles = "return [...document.querySelectorAll('.chat-open')].map((b) => b.textContent)";
    assert_eq!(browser.run(titles), json!(["second talk", "first talk"]));
    browser.click(".chat:last-child .chat-open");
    assert_eq!(browser.text(".question .text"), "first talk");
    assert_eq!(browser.text(".reply .text"), "one");
    browser.send("go on");
    browser.wait_for_reply(2);
    let sent = prompt(&web, 2);
    assert!(
        sent.contains("first talk") && !sent.contains("second"),
        "{sent}"
    );
    browser.click("#chats-button");
    browser.run("document.querySelector('.chat:last-child .chat-delete').scrollIntoView()");
    browser.click(".chat:last-child .chat-delete");
    assert_eq!(n_of(&browser, ".chat"), 2, "the first click asks");
    browser.click(".chat:last-child .chat-delete");
    assert_eq!(browser.run(titles), json!(["first talk"]));
    browser.reload();
    assert_eq!(browser.run(titles), json!(["first talk"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_edited_and_taken_back() {
    let web = start(["</think>one", "</think>two", "</think>three"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("first");
    browser.wait_for_reply(1);
    browser.send("second");
    browser.wait_for_reply(2);
    browser.run("document.querySelector('.question').scrollIntoView()");
    browser.click(".question .edit");
    browser.type_into(".edit-form textarea", " better");
    browser.click(".edit-form .again");
    browser.wait("document.querySelector('.reply .text')?.textContent === 'three'");
    browser.wait_for_reply(1);
    assert_eq!(browser.text(".question .text"), "first better");
    let sent = prompt(&web, 2);
    assert!(
        sent.contains("first better") && !sent.contains("second"),
        "{sent}"
    );
    browser.click(".question .delete");
    assert_eq!(n_of(&browser, "#conversation > li"), 0);
    browser.reload();
    assert_eq!(n_of(&browser, "#conversation > li"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_leave_as_a_file_and_come_back() {
    let web = start(["</think>one"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("keep this");
    browser.wait_for_reply(1);
    // The file that the link would save.
    browser.run(
        "URL.createObjectURL = (file) => { window.exported = file; return '#'; }; \
         HTMLAnchorElement.prototype.click = () => {}; \
         document.getElementById('export').click()",
    );
    let file = browser.run_async("window.exported.text().then(arguments[0])");
    let file = file.as_str().expect("text").to_owned();
    let value: Value = serde_json::from_str(&file).expect("JSON");
    assert_eq!(value["conversations"][0]["turns"][1]["content"], "one");
    browser.run("localStorage.clear(); sessionStorage.clear()");
    browser.reload();
    assert_eq!(n_of(&browser, ".chat"), 0);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("good.json"), file).expect("a file");
    std::fs::write(path("bad.json"), "{}").expect("a file");
    browser.type_into("#import-file", &path("bad.json"));
    browser.wait("document.getElementById('notice').textContent.includes('no conversations')");
    browser.type_into("#import-file", &path("good.json"));
    browser.wait("document.getElementById('notice').textContent.includes('1 conversation')");
    browser.click("#chats-button");
    browser.click(".chat-open");
    assert_eq!(browser.text(".question .text"), "keep this");
    assert_eq!(browser.text(".reply .text"), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_file_goes_before_the_message_and_settings_go_with_it() {
    let web = start(["</think>one"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("notes.txt"), "three ``` ticks\n").expect("a file");
    std::fs::write(path("image.png"), b"\x89PNG\xff").expect("a file");
    browser.type_into("#file", &path("image.png"));
    browser.wait("document.getElementById('notice').textContent.includes('no text in UTF-8')");
    browser.type_into("#file", &path("notes.txt"));
    browser.wait("document.querySelector('#attached button')");
    browser.click("#settings-button");
    browser.type_into("#set-max-tokens", "2");
    browser.type_into("#set-temperature", "0");
    browser.send("what is it?");
    browser.wait_for_reply(1);
    let sent = prompt(&web, 0);
    let expected = "notes.txt:\n````\nthree ``` ticks\n````\n\nwhat is it?";
    assert!(sent.contains(expected), "{sent}");
    assert_eq!(n_of(&browser, "#attached button"), 0);
    let facts = browser.text(".facts");
    assert!(
        facts.contains("cut at the token limit"),
        "two tokens: {facts}"
    );
    browser.reload();
    let kept = "return document.getElementById('set-max-tokens').value";
    assert_eq!(browser.run(kept), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_after_reasoning_computes_only_what_is_new() {
    let web = start(["a thought</think>one", "more</think>two"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("first");
    browser.wait_for_reply(1);
    let before = prompt(&web, 0).len();
    browser.send("second");
    browser.wait_for_reply(2);
    let slots = web.get("/slots").await.json();
    let last = &slots[0]["last_request"];
    let cached = last["cached_tokens"].as_u64().expect("a number");
    let tokens = last["prompt_tokens"].as_u64().expect("a number");
    assert!(prompt(&web, 1).contains("a thought"), "it stays");
    // The end of the reply, the message and its markers.
    assert!(before > 0 && tokens - cached <= 12, "{last}");
}
