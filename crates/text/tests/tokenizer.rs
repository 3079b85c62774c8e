//! The published vocabulary and the small one give the ids that the reference library gives.

mod common;

use std::time::Instant;

use common::{gguf_parts, ids, read, rows, shared, str};
use ds4_text::Tokenizer;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The text of a row of `cases.jsonl`, and what its ids must be.
fn check_row(tokenizer: &Tokenizer, row: &Value) {
    let id = str(row, "id");
    let text = match (&row["repeat"], &row["file"]) {
        (Value::String(unit), _) => unit.repeat(row["count"].as_u64().unwrap() as usize),
        (_, Value::String(file)) => {
            let folder = shared("tokenizer").expect("the row's own folder");
            read(&folder.join(file))
        }
        _ => str(row, "text").to_owned(),
    };
    let found = tokenizer.encode(&text);
    if row["ids_sha256"].is_string() {
        assert_eq!(
            found.len() as u64,
            row["n_ids"].as_u64().unwrap(),
            "{id}: number of ids"
        );
        let bytes: Vec<u8> = found.iter().flat_map(|id| id.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hash, str(row, "ids_sha256"), "{id}: hash of the ids");
    } else {
        assert_eq!(found, ids(&row["ids"]), "{id}: ids of {text:?}");
    }
    let bytes: Vec<u8> = found
        .iter()
        .flat_map(|&id| tokenizer.token_bytes(id))
        .copied()
        .collect();
    assert_eq!(bytes, text.as_bytes(), "{id}: bytes of the ids");
}

#[test]
fn every_published_case_gives_the_same_ids_from_tokenizer_json_and_from_gguf() {
    let Some(path) = shared("tokenizer/tokenizer.json") else {
        return;
    };
    let document = read(&path);
    let cases = rows(&shared("tokenizer/cases.jsonl").unwrap());
    assert_eq!(cases.len(), 648);
    let started = Instant::now();
    let tokenizer = Tokenizer::from_tokenizer_json(&document).unwrap();
    println!("load from tokenizer.json: {:?}", started.elapsed());
    assert_eq!(tokenizer.n_vocab(), 129_280);
    for case in &cases {
        check_row(&tokenizer, case);
    }
    for by_flag in [true, false] {
        let (tokens, types, merges) = gguf_parts(&document, by_flag);
        let started = Instant::now();
        let tokenizer =
            Tokenizer::from_gguf_parts("gpt2", "joyai-llm", &tokens, &types, &merges).unwrap();
        println!("load from GGUF arrays: {:?}", started.elapsed());
        for case in &cases {
            check_row(&tokenizer, case);
        }
    }
}
