//! The four protocols' readers of requests on arbitrary JSON: a request or an error, never a panic,
//! and what is read can be rendered or is refused.
#![no_main]

use std::collections::BTreeMap;

use ds4_server::api::{Preferences, RequestContext, chat, completions, messages, responses};
use ds4_server::generation::Thinking;
use ds4_server::memory;
use ds4_text::{Effort, Mode};
use libfuzzer_sys::fuzz_target;

fn context() -> RequestContext {
    RequestContext {
        default_thinking: Thinking {
            mode: Mode::Thinking,
            effort: Effort::High,
            budget: None,
        },
        model_id: "model".to_owned(),
        aliases: BTreeMap::new(),
        strict_models: false,
        strict_tools: false,
        preferences: Preferences::default(),
        system_fingerprint: None,
        default_max_tokens: 1000,
        n_context: 4096,
        now_unix: 1_790_000_000,
        request_id: "req_1".to_owned(),
        new_id: || "0".repeat(32),
        headers: BTreeMap::new(),
    }
}

fuzz_target!(|text: &str| {
    let weight = memory::of_text(text.as_bytes());
    let Ok(body) = ds4_text::json::parse(text) else {
        return;
    };
    assert!(weight + text.len() >= memory::of(&body), "weighed too light");
    let context = context();
    let _ = chat::parse(&body, &context);
    let _ = completions::parse(&body, &context);
    let _ = messages::parse(&body, &context);
    let _ = responses::parse_with_store(&body, &context, &responses::NoStore);
});
