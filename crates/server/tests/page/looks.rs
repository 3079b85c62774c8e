//! How the page looks: Markdown, small windows, and what axe-core finds.

use ds4_server::http::ServerOptions;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::script::Behaviour;
use crate::web::Web;

const RICH: &str = "</think># Title\n\nSome **bold** and *thin* `code`, a [link](http://127.0.0.1:9/x) \
    and a [trap](javascript:alert(1)). Maths: \\(x_1\\).\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n\
    - one\n- two\n  1. three\n\n> quoted\n\n```rust\nfn main() { println!(\"hi\"); }\n```\n";

async fn rich() -> (Web, Option<Browser>) {
    let web = Web::start(Behaviour::default(), ServerOptions::default(), [RICH]).await;
    let browser = Browser::open(web.address);
    if let Some(browser) = &browser {
        browser.send("show me");
        browser.wait_for_reply(1);
    }
    (web, browser)
}

#[tokio::test(flavor = "multi_thread")]
async fn markdown_is_laid_out_and_code_is_coloured_and_copied() {
    let (_web, Some(browser)) = rich().await else {
        return;
    };
    for (css, text) in [
        (".reply h2", "Title"),
        (".reply strong", "bold"),
        (".reply em", "thin"),
        (".reply p > code", "code"),
        (".reply th.right", "b"),
        (".reply td", "2"),
        (".reply .text > ul > li > ol > li", "three"),
        (".reply blockquote p", "quoted"),
        (".reply pre .keyword", "fn"),
        (".reply .code-head span", "rust"),
    ] {
        assert_eq!(browser.text(css), text, "{css}");
    }
    assert!(browser.text(".reply .text > p").contains("\\(x_1\\)"));
    let links = "return [...document.querySelectorAll('.reply a')].map((a) => [a.href, a.rel])";
    let expected = json!([["http://127.0.0.1:9/x", "noopener noreferrer"]]);
    assert_eq!(browser.run(links), expected);
    browser.run(
        "Object.defineProperty(navigator, 'clipboard', \
           {value: {writeText: async (text) => { window.copied = text; }}}); \
         const button = document.querySelector('.code-head button'); \
         window.labels = []; \
         new MutationObserver(() => window.labels.push(button.textContent)) \
           .observe(button, {childList: true})",
    );
    browser.click(".code-head button");
    // It says so for a moment, which a busy machine may not look at.
    browser.wait("window.labels.includes('Copied')");
    assert_eq!(
        browser.run("return window.copied"),
        "fn main() { println!(\"hi\"); }"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_320_pixels_shows_the_models_name_and_a_button_that_sends() {
    let (_web, Some(browser)) = rich().await else {
        return;
    };
    browser.look(320, 568, "light");
    browser.wait("document.getElementById('served').textContent === 'Scripted'");
    let within = "const inSight = (id) => { \
            const box = document.getElementById(id).getBoundingClientRect(); \
            return box.width > 20 && box.left >= 0 && box.right <= 320 \
                && box.top >= 0 && box.bottom <= 568; }; \
        return [inSight('served'), inSight('send'), inSight('message'), \
                document.documentElement.scrollWidth <= 320]";
    assert_eq!(browser.run(within), json!([true, true, true, true]));
}

#[tokio::test(flavor = "multi_thread")]
async fn axe_core_finds_nothing_serious() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let axe = format!("{root}/target/axe-core/package/axe.min.js");
    let Ok(axe) = std::fs::read_to_string(&axe) else {
        ds4_conformance::golden::skipped("axe-core, which .ci/axe-core gets");
        return;
    };
    let (_web, Some(browser)) = rich().await else {
        return;
    };
    browser.click("#chats-button");
    browser.click("#settings-button");
    browser.click("#system-button");
    browser.run(&axe);
    for (width, height) in [(1280, 800), (320, 568)] {
        for scheme in ["light", "dark"] {
            browser.look(width, height, scheme);
            let found = browser.run_async(
                "const done = arguments[0]; axe.run().then((found) => done( \
                   found.violations.map((v) => [v.impact, v.id, v.nodes[0].html])))",
            );
            let found = found.as_array().expect("a list");
            let is_serious = |v: &&Value| v[0] == "serious" || v[0] == "critical";
            let serious: Vec<&Value> = found.iter().filter(is_serious).collect();
            assert!(serious.is_empty(), "{width} {scheme}: {serious:#?}");
        }
    }
}

/// The longest paragraph whose emphasis is looked for, the deepest quotation, and the longest line
/// that is coloured, as `markup.js` has them, are exceeded here.
#[tokio::test(flavor = "multi_thread")]
async fn text_that_would_take_long_to_lay_out_is_shown_as_it_is_written() {
    let emphasis = "_a".repeat(2000);
    let quoted = format!("{}deep", "> ".repeat(40));
    let code = format!("```javascript\n{} = 1\n```", "a".repeat(600));
    let much = format!("</think>{emphasis}\n\n{quoted}\n\n{code}\n");
    let deepest = format!("</think>{}deepest", "> ".repeat(6000));
    let (much, deepest): (&'static str, &'static str) = (much.leak(), deepest.leak());
    let behaviour = Behaviour {
        context: 1 << 20,
        ..Behaviour::default()
    };
    let web = Web::start(behaviour, ServerOptions::default(), [much, deepest]).await;
    let Some(browser) = Browser::open(web.address) else {
        return;
    };
    browser.send("show me");
    browser.wait_for_reply(1);
    let counts = "return ['.reply em', '.reply blockquote', '.reply .token'] \
        .map((css) => document.querySelectorAll(css).length)";
    assert_eq!(browser.run(counts), json!([0, 25, 0]));
    assert!(browser.text(".reply .text > p").starts_with("_a_a_a"));
    assert!(browser.text(".reply pre").ends_with(" = 1"));
    browser.send("and deeper");
    browser.wait_for_reply(2);
    browser.wait("[...document.querySelectorAll('.reply')].at(-1).textContent.includes('deepest')");
}
