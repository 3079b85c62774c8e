//! The list of models, the developer tools' shapes, and errors.

mod common;

use std::collections::BTreeMap;

use ds4_server::api::models::{ModelCard, list, one};
use ds4_server::api::utility::{
    Dialect, Source, Tokenize, applied_template, detokenized, parse_detokenize, parse_tokenize,
    tokenized,
};
use ds4_server::api::{RequestContext, error};
use ds4_server::generation::{Failure, FailureKind};
use serde_json::json;

fn card() -> ModelCard {
    ModelCard {
        created: 1_790_000_000,
        owned_by: "deepseek".to_owned(),
        display_name: "DeepSeek V4 Flash".to_owned(),
        n_context: 100_000,
        n_context_trained: 1_048_576,
        max_tokens: 393_216,
        n_vocab: 129_280,
        n_params: 284_000_000_000,
        size_bytes: 90_000_000_000,
    }
}

fn context() -> RequestContext {
    RequestContext {
        aliases: BTreeMap::from([("deepseek-chat".to_owned(), None)]),
        ..common::context()
    }
}

#[test]
fn one_list_fits_both_vendors() {
    let list = list(&card(), &context());
    assert_eq!(list["object"], "list");
    assert_eq!(list["has_more"], false);
    assert_eq!(list["first_id"], "deepseek-v4-flash");
    assert_eq!(list["last_id"], "deepseek-chat");
    let entry = &list["data"][0];
    assert_eq!(entry["created"], 1_790_000_000);
    assert_eq!(entry["created_at"], "2026-09-21T14:13:20Z");
    for name in ["object", "type"] {
        assert_eq!(entry[name], "model");
    }
    for name in ["owned_by", "display_name"] {
        assert!(entry[name].is_string(), "{name}");
    }
    assert_eq!(entry["max_input_tokens"], 99_999);
    assert_eq!(
        *entry,
        one(&card(), "deepseek-v4-flash", &context()).unwrap()
    );
}

#[test]
fn any_name_is_a_model_unless_the_server_is_strict() {
    let found = one(&card(), "claude-haiku-4-5", &context()).unwrap();
    assert_eq!(found["id"], "claude-haiku-4-5");
    let strict = RequestContext {
        strict_models: true,
        ..context()
    };
    assert!(one(&card(), "deepseek-chat", &strict).is_ok());
    let failure = one(&card(), "claude-haiku-4-5", &strict).expect_err("not ours");
    assert_eq!(error::status(failure.kind, false), 404);
    assert_eq!(error::openai(&failure)["error"]["code"], "model_not_found");
}

#[test]
fn a_date_no_calendar_has_does_not_break_the_list() {
    let card = ModelCard {
        created: u64::MAX,
        ..card()
    };
    assert!(list(&card, &context())["data"][0]["created_at"].is_string());
}

#[test]
fn tokenize_reads_both_dialects() {
    let read = |body| parse_tokenize(&body, &context());
    let request = read(json!({"content": "Ciao"})).unwrap();
    assert_eq!(request.dialect, Dialect::LlamaCpp);
    let Source::Text {
        text,
        add_special,
        parse_special,
    } = &request.source
    else {
        panic!("text");
    };
    assert_eq!(
        (text.as_str(), *add_special, *parse_special),
        ("Ciao", false, true)
    );
    let tokenized = |request: &Tokenize, ids: &[u32]| -> serde_json::Value {
        let bytes_of = |id| match id {
            7 => b"Ci".as_slice(),
            _ => b"\xf0\x9f",
        };
        let text = tokenized(request, ids, bytes_of, 100);
        serde_json::from_str(&text).expect("JSON")
    };
    let tokens = [7, 9];
    assert_eq!(tokenized(&request, &tokens), json!({"tokens": [7, 9]}));

    let request = read(json!({"content": "Ciao", "with_pieces": true})).unwrap();
    let pieces = json!({"tokens": [
        {"id": 7, "piece": "Ci"},
        {"id": 9, "piece": [0xf0, 0x9f]},
    ]});
    assert_eq!(tokenized(&request, &tokens), pieces);

    let request = read(json!({"prompt": "Ciao"})).unwrap();
    assert!(matches!(
        request.source,
        Source::Text {
            add_special: true,
            ..
        }
    ));
    let counted = json!({"count": 2, "max_model_len": 100, "tokens": [7, 9]});
    assert_eq!(tokenized(&request, &tokens), counted);

    let messages = json!({"messages": [{"role": "user", "content": "Ciao"}]});
    assert!(matches!(read(messages).unwrap().source, Source::Chat(_)));
    let long = read(json!({"content": "x".repeat((16 << 20) + 1)})).expect_err("too long");
    assert!(long.message.contains("16 MiB"), "{long}");
    let nothing = read(json!({})).expect_err("no text");
    assert_eq!(nothing.param.as_deref(), Some("content"));
}

#[test]
fn detokenize_takes_ids_of_the_vocabulary_only() {
    assert_eq!(
        parse_detokenize(&json!({"tokens": [0, 9]}), 10).unwrap(),
        [0, 9]
    );
    for tokens in [json!([10]), json!([-1]), json!([1.5]), json!(["a"])] {
        let failure = parse_detokenize(&json!({"tokens": tokens}), 10).expect_err("no id");
        assert_eq!(failure.param.as_deref(), Some("tokens"), "{tokens}");
        assert!(failure.message.contains("0 to 9"), "{failure}");
    }
    assert_eq!(
        detokenized("Ciao"),
        json!({"content": "Ciao", "prompt": "Ciao"})
    );
    assert_eq!(
        applied_template("Ciao", 3),
        json!({"prompt": "Ciao", "tokens": 3})
    );
}

#[test]
fn every_failure_has_a_row_in_the_error_table() {
    use FailureKind::*;
    // Kind; status, type and code of OpenAI; status and type of Anthropic.
    let table = [
        (
            Invalid,
            400,
            "invalid_request_error",
            None,
            400,
            "invalid_request_error",
        ),
        (
            Unsupported,
            400,
            "invalid_request_error",
            Some("unsupported_value"),
            400,
            "invalid_request_error",
        ),
        (
            UnsupportedContent,
            400,
            "invalid_request_error",
            Some("unsupported_content_type"),
            400,
            "invalid_request_error",
        ),
        (
            ContextOverflow {
                n_prompt: 9,
                n_context: 8,
            },
            400,
            "invalid_request_error",
            Some("context_length_exceeded"),
            400,
            "invalid_request_error",
        ),
        (
            Unauthorised,
            401,
            "invalid_request_error",
            Some("invalid_api_key"),
            401,
            "authentication_error",
        ),
        (
            Forbidden,
            403,
            "permission_error",
            Some("forbidden_origin"),
            403,
            "permission_error",
        ),
        (
            NotFound,
            404,
            "invalid_request_error",
            None,
            404,
            "not_found_error",
        ),
        (
            Conflict,
            409,
            "invalid_request_error",
            Some("conflict"),
            409,
            "invalid_request_error",
        ),
        (
            Overloaded,
            429,
            "rate_limit_error",
            Some("rate_limit_exceeded"),
            529,
            "overloaded_error",
        ),
        (
            Internal,
            500,
            "server_error",
            Some("internal_error"),
            500,
            "api_error",
        ),
        (
            Unavailable,
            503,
            "unavailable_error",
            Some("loading"),
            503,
            "overloaded_error",
        ),
    ];
    for (kind, status, openai_type, code, anthropic_status, anthropic_type) in table {
        let failure = Failure {
            kind,
            message: "What went wrong.".to_owned(),
            param: None,
        };
        assert_eq!(error::status(kind, false), status, "{kind:?}");
        assert_eq!(error::status(kind, true), anthropic_status, "{kind:?}");
        let mut expected = json!({"error": {
            "message": "What went wrong.", "type": openai_type, "param": null, "code": code,
        }});
        if let ContextOverflow { .. } = kind {
            expected["error"]["n_prompt_tokens"] = 9.into();
            expected["error"]["n_ctx"] = 8.into();
        }
        assert_eq!(error::openai(&failure), expected, "{kind:?}");
        let expected = json!({
            "type": "error",
            "error": {"type": anthropic_type, "message": "What went wrong."},
            "request_id": "req_1",
        });
        assert_eq!(error::anthropic(&failure, "req_1"), expected, "{kind:?}");
        assert_eq!(
            error::retry_after_s(kind).is_some(),
            matches!(status, 429 | 503)
        );
    }
}
