//! `ds4 text`: the doors, over whole files of cases.

use std::path::PathBuf;

use ds4_conformance::golden::project_root;
use serde_json::{Map, Value};

use crate::program::Ds4;
use crate::speaking_model;

fn rows(name: &str) -> Vec<Map<String, Value>> {
    let path: PathBuf = project_root().join("testdata/text").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect();
    assert!(!rows.is_empty(), "no rows in {}", path.display());
    rows
}

fn lines(rows: &[Map<String, Value>]) -> Vec<u8> {
    rows.iter()
        .flat_map(|row| format!("{}\n", Value::from(row.clone())).into_bytes())
        .collect()
}

fn answers(ds4: &Ds4, args: &[&str], input: &[u8]) -> Vec<Value> {
    let ran = ds4.run_with(args, input);
    ran.answer()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON lines"))
        .collect()
}

#[test]
fn every_row_of_conversations_renders_to_its_prompt() {
    let rows = rows("render_cases.jsonl");
    let answers = answers(&Ds4::new(), &["text", "render"], &lines(&rows));
    assert_eq!(answers.len(), rows.len());
    let mut n_prompts = 0;
    for (row, answer) in rows.iter().zip(&answers) {
        assert_eq!(row["id"], answer["id"]);
        if let Some(expected) = row.get("expected") {
            assert_eq!(&answer["prompt"], expected, "{}", row["id"]);
            n_prompts += 1;
        }
    }
    assert!(n_prompts > 80, "{n_prompts} rows have a prompt");
}

#[test]
fn every_row_of_outputs_parses_to_its_reply() {
    let tools = project_root().join("testdata/text/recovery_tools.json");
    let tools: Value =
        serde_json::from_str(&std::fs::read_to_string(tools).expect("readable")).expect("JSON");
    let mut rows = rows("recovery_cases.jsonl");
    for row in &mut rows {
        row.insert("tools".to_owned(), tools.clone());
    }
    let answers = answers(&Ds4::new(), &["text", "parse"], &lines(&rows));
    assert_eq!(answers.len(), rows.len());
    for (row, answer) in rows.iter().zip(&answers) {
        let expected = row["expected"].as_object().expect("an object");
        for (member, expected) in expected {
            assert_eq!(answer[member], *expected, "{} {member}", row["id"]);
        }
    }
}

#[test]
fn tokenizing_and_back_gives_the_text_with_the_tokenizer_of_a_model() {
    let ds4 = Ds4::new();
    speaking_model::write(ds4.home());
    let input =
        "{\"id\": 1, \"text\": \"h\u{e9}\"}\n\n{\"id\": \"two\", \"text\": \"a<｜User｜>b\"}\n";
    let args = ["text", "tokenize", "--tokenizer", "speaking.gguf"];
    let tokenized = ds4.run_with(args, input.as_bytes());
    let expected = format!(
        "{{\"id\":1,\"ids\":[{},{},{}]}}\n{{\"id\":\"two\",\"ids\":[{},258,{}]}}\n",
        b'h', 0xc3, 0xa9, b'a', b'b'
    );
    assert_eq!(tokenized.answer(), expected);
    let args = ["text", "detokenize", "--tokenizer", "speaking.gguf"];
    let text = ds4.run_with(args, tokenized.answer().as_bytes());
    let expected = "{\"id\":1,\"text\":\"h\u{e9}\"}\n{\"id\":\"two\",\"text\":\"a<｜User｜>b\"}\n";
    assert_eq!(text.answer(), expected);
}

#[test]
fn rows_are_the_tokens_of_the_publishers_tokenizer_where_it_is_at_hand() {
    let Some(shared) = ds4_conformance::golden::shared() else {
        return;
    };
    let folder = shared.join("data/tokenizer");
    let text = std::fs::read_to_string(folder.join("cases.jsonl")).expect("readable");
    let rows: Vec<Map<String, Value>> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .filter(|row: &Map<String, Value>| row.contains_key("text") && row.contains_key("ids"))
        .collect();
    let tokenizer = folder.join("tokenizer.json");
    let tokenizer = tokenizer.to_str().expect("a readable path");
    let args = ["text", "tokenize", "--tokenizer", tokenizer];
    let answers = answers(&Ds4::new(), &args, &lines(&rows));
    assert_eq!(answers.len(), rows.len());
    for (row, answer) in rows.iter().zip(&answers) {
        assert_eq!(answer["ids"], row["ids"], "{}", row["id"]);
    }
}

#[test]
fn a_line_that_a_door_does_not_take_is_named_by_its_number() {
    let ds4 = Ds4::new();
    let good = "{\"id\":1,\"text\":\"a\"}\n";
    for (bad, words) in [
        ("nonsense", &["line 2", "JSON"][..]),
        ("{\"text\": \"a\"}", &["line 2", "id"]),
        ("{\"id\": 1, \"text\": 5}", &["line 2", "text", "5"]),
    ] {
        let ran = ds4.run_with(["text", "parse"], format!("{good}{bad}\n{good}").as_bytes());
        ran.refused(words);
        assert_eq!(
            ran.stdout.lines().count(),
            1,
            "lines before it are answered"
        );
    }
    ds4.run_with(["text", "parse"], b"\xff\n")
        .refused(&["line 1", "UTF-8"]);
    std::fs::write(ds4.home().join("t.json"), "{}").expect("a writable home");
    ds4.run_with(["text", "tokenize", "--tokenizer", "t.json"], b"")
        .refused(&["t.json", "tokenizer.json"]);
}
