//! Vocabularies that cannot be used are refused by name.

mod common;

use common::{gguf_parts, json, read, testdata};
use ds4_text::{LoadError, Tokenizer};
use serde_json::{Value, json};

/// Damages the small vocabulary's GGUF arrays and returns the message of the refusal.
fn refusal(damage: impl FnOnce(&mut Vec<String>, &mut Vec<i32>, &mut Vec<String>)) -> String {
    let document = read(&testdata("small_tokenizer.json"));
    let (mut tokens, mut types, mut merges) = gguf_parts(&document, true);
    damage(&mut tokens, &mut types, &mut merges);
    let result = Tokenizer::from_gguf_parts("gpt2", "deepseek-v3", &tokens, &types, &merges);
    result
        .err()
        .expect("a damaged vocabulary is refused")
        .to_string()
}

#[test]
fn a_damaged_gguf_vocabulary_is_refused_by_name() {
    let at = |tokens: &[String], text: &str| tokens.iter().position(|t| t == text).unwrap();
    for marker in [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<think>",
        "</think>",
        "｜DSML｜",
    ] {
        let missing = refusal(|tokens, _, _| {
            let i = at(tokens, marker);
            tokens[i] = "<other>".to_owned();
        });
        assert!(
            missing.contains(marker) && missing.contains("missing"),
            "{missing}"
        );
    }
    let ordinary = refusal(|tokens, types, _| types[at(tokens, "<think>")] = 1);
    assert!(
        ordinary.contains("<think>") && ordinary.contains("ordinary"),
        "{ordinary}"
    );
    let bar = refusal(|tokens, types, _| types[at(tokens, "<｜User｜>")] = 1);
    assert!(bar.contains('｜') && bar.contains("256"), "{bar}");
    let kind = refusal(|_, types, _| types[5] = 6);
    assert!(
        kind.contains("token 5") && kind.contains("type 6"),
        "{kind}"
    );
    let short = refusal(|_, types, _| types.truncate(600));
    assert!(short.contains("token_type"), "{short}");
    let double = refusal(|tokens, _, _| tokens[300] = tokens[301].clone());
    assert!(double.contains("300 and 301"), "{double}");
    let byte = refusal(|tokens, _, _| {
        let i = at(tokens, "Ġ");
        tokens[i] = "ĠĠĠĠĠĠ".to_owned();
    });
    assert!(byte.contains("0x20"), "{byte}");
    let part = refusal(|_, _, merges| merges[3] = "Ġ nonsense".to_owned());
    assert!(
        part.contains("merge 3") && part.contains("nonsense"),
        "{part}"
    );
    let whole = refusal(|_, _, merges| merges[4] = "z z".to_owned());
    assert!(whole.contains("merge 4") && whole.contains("zz"), "{whole}");
    let blank = refusal(|_, _, merges| merges[5] = "ab".to_owned());
    assert!(
        blank.contains("merge 5") && blank.contains("space"),
        "{blank}"
    );
}

#[test]
fn another_tokenizer_model_is_refused() {
    let document = read(&testdata("small_tokenizer.json"));
    let (tokens, types, merges) = gguf_parts(&document, true);
    let load =
        |model, pre| Tokenizer::from_gguf_parts(model, pre, &tokens, &types, &merges).map(|_| ());
    assert!(load("gpt2", "joyai-llm").is_ok());
    for (model, pre, found) in [("llama", "joyai-llm", "llama"), ("gpt2", "qwen2", "qwen2")] {
        let error = load(model, pre).unwrap_err();
        assert!(matches!(error, LoadError::UnsupportedKind { .. }));
        assert!(error.to_string().contains(found), "{error}");
    }
    let not_utf8 = Tokenizer::from_gguf_parts("gpt2", "joyai-llm", [b"\xff"], &[1], [""]);
    assert!(matches!(
        not_utf8.err(),
        Some(LoadError::NotUtf8 { index: 0, .. })
    ));
    let nothing = Tokenizer::from_gguf_parts("gpt2", "joyai-llm", [""; 0], &[], [""; 0]);
    assert!(matches!(
        nothing.err(),
        Some(LoadError::MissingProtocolToken { .. })
    ));
}

#[test]
fn a_hole_in_a_gguf_vocabulary_is_never_produced() {
    let document = read(&testdata("small_tokenizer.json"));
    let (mut tokens, mut types, merges) = gguf_parts(&document, true);
    for i in 0..2 {
        tokens.push(format!("[PAD{i}]"));
        types.push(5);
    }
    let load = Tokenizer::from_gguf_parts("gpt2", "joyai-llm", &tokens, &types, &merges);
    let tokenizer = load.unwrap();
    let hole = tokens.len() as u32 - 1;
    assert_eq!(tokenizer.token_bytes(hole), b"[PAD1]");
    assert!(!tokenizer.encode("[PAD1]").contains(&hole));
}

#[test]
fn a_tokenizer_json_that_asks_for_something_else_is_refused() {
    let document = json(&read(&testdata("small_tokenizer.json")));
    let changes: [(&str, Value, &str); 12] = [
        ("/model/type", json!("Unigram"), "model.type"),
        ("/model/byte_fallback", json!(true), "byte_fallback"),
        ("/model/ignore_merges", json!(true), "ignore_merges"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/continuing_subword_prefix", json!("##"), "prefix"),
        ("/normalizer", json!({"type": "NFC"}), "normalizer"),
        (
            "/pre_tokenizer",
            json!({"type": "ByteLevel"}),
            "pre_tokenizer",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!("\\p{N}{1,4}"),
            "pretokenizers[0]",
        ),
        (
            "/pre_tokenizer/pretokenizers/3/use_regex",
            json!(true),
            "last step",
        ),
        ("/added_tokens/3/lstrip", json!(true), "lstrip"),
        ("/added_tokens/3/id", json!(100_000), "100000"),
        ("/added_tokens/3/id", json!(7), "id 7"),
    ];
    for (pointer, value, said) in changes {
        let mut changed = document.clone();
        *changed.pointer_mut(pointer).expect(pointer) = value;
        let error = Tokenizer::from_tokenizer_json(&changed.to_string()).err();
        let error = error.expect(pointer).to_string();
        assert!(error.contains(said), "{pointer}: {error}");
    }
    for text in ["", "{}", "[]", "{\"model\": {}}"] {
        let error = Tokenizer::from_tokenizer_json(text).err();
        assert!(matches!(error, Some(LoadError::Json(_))), "{text:?}");
    }
}
