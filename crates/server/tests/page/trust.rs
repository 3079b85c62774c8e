//! What the page must not do: run what the model writes, ask elsewhere, keep a key.

use ds4_server::http::ServerOptions;
use serde_json::Value;

use crate::browser::Browser;
use crate::script::Behaviour;
use crate::web::Web;

#[tokio::test(flavor = "multi_thread")]
async fn text_that_looks_like_html_is_text() {
    let evil =
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    let said =
        format!("{evil}</think>{evil} and **{evil}** and `{evil}`\n\n```html\n{evil}\n```\nend");
    let web = Web::start(
        Behaviour::default(),
        ServerOptions::default(),
        [said.as_str()],
    )
    .await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send(&format!("{evil} a_b"));
    browser.wait_for_reply(1);
    assert_eq!(browser.text(".question .text"), format!("{evil} a_b"));
    assert_eq!(browser.text(".reasoning-text"), evil);
    let shown = browser.text(".reply .text");
    assert_eq!(shown.matches(evil).count(), 4, "{shown}");
    assert_eq!(browser.text(".reply pre code"), evil);
    assert_eq!(browser.text(".reply p > code"), evil);
    assert_eq!(browser.text(".reply strong"), evil);
    let made = "return document.querySelectorAll('#conversation img, #conversation script').length";
    assert_eq!(browser.run(made), 0);
    assert_eq!(browser.run("return document.title"), "ds4");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_of_anybody_else_and_nothing_goes_wrong() {
    let web = Web::start(
        Behaviour::default(),
        ServerOptions::default(),
        [
            "thought</think>[link](http://127.0.0.1:9/x) ![](http://127.0.0.1:9/y)",
            "</think>more",
        ],
    )
    .await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    for n_replies in 1..=2 {
        browser.send("hi");
        browser.wait_for_reply(n_replies);
    }
    browser.wait("document.querySelector('.slot .prefill')?.textContent");
    let own = format!("http://{}/", web.address);
    let mut asked = Vec::new();
    for entry in browser.log("performance") {
        let message = entry["message"].as_str().expect("text");
        let message: Value = serde_json::from_str(message).expect("JSON");
        let params = &message["message"]["params"];
        // A browser has pages of its own, which are not ours to answer for.
        let is_ours = params["documentURL"].as_str() == Some(&own);
        if message["message"]["method"] == "Network.requestWillBeSent" && is_ours {
            let url = &params["request"]["url"];
            asked.push(url.as_str().expect("an address").to_owned());
        }
    }
    let chat = format!("{own}v1/chat/completions");
    assert!(asked.contains(&chat), "{asked:#?}");
    let elsewhere: Vec<_> = asked.iter().filter(|url| !url.starts_with(&own)).collect();
    assert_eq!(elsewhere, Vec::<&String>::new());
    assert_eq!(
        browser.log("browser"),
        Vec::<Value>::new(),
        "the console is empty"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_key_asks_for_it_and_the_tab_alone_keeps_it() {
    let options = ServerOptions {
        api_keys: vec!["secret".to_owned()],
        ..ServerOptions::default()
    };
    let web = Web::start(Behaviour::default(), options, ["</think>said"]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.wait("!document.getElementById('key-form').hidden");
    browser.send("hi");
    browser.wait_for_reply(1);
    let error = browser.text(".error");
    assert!(error.contains("API keys"), "{error}");
    assert!(
        error.starts_with("The API key is missing or wrong"),
        "{error}"
    );
    browser.type_into("#key", "wrong");
    browser.click("#key-form button");
    browser.wait("!document.getElementById('key-form').hidden");
    browser.type_into("#key", "secret");
    browser.click("#key-form button");
    browser.wait("document.querySelector('.reply .text')?.textContent === 'said'");
    browser.wait("document.querySelector('.slot')");
    assert_eq!(
        browser.run("return document.getElementById('key-form').hidden"),
        true
    );
    let in_tab = "return Object.values(sessionStorage).filter((v) => v.includes('secret'))";
    assert_eq!(browser.run(in_tab), serde_json::json!(["secret"]));
    let beyond = "return [Object.values(localStorage).join().includes('secret'), \
                  document.cookie, location.href]";
    let address = format!("http://{}/", web.address);
    let expected = serde_json::json!([false, "", address]);
    assert_eq!(browser.run(beyond), expected);
    let log = web.log.lock().unwrap().join("\n");
    assert!(!log.contains("secret"), "{log}");
}
