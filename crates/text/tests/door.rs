//! One JSON line in, one out: the rows of the test data as they are, and what is said of lines
//! that are not rows.

mod common;

use common::{ids, json, lines, published_tokenizer, read, shared, small_tokenizer, str, testdata};
use ds4_text::door::{DoorError, detokenize_line, parse_line, render_line, tokenize_line};
use serde_json::Value;

#[test]
fn rows_are_tokenized_and_detokenized() {
    let mut sources = vec![(small_tokenizer(), testdata("small_cases.jsonl"))];
    if let Some(path) = shared("tokenizer/cases.jsonl") {
        sources.push((published_tokenizer().unwrap(), path));
    }
    for (tokenizer, path) in sources {
        for line in lines(&path) {
            let row = json(&line);
            let Value::String(text) = &row["text"] else {
                let error = tokenize_line(&tokenizer, &line).unwrap_err().to_string();
                assert!(error.starts_with("text: found null"), "{error}");
                continue;
            };
            let answer = tokenize_line(&tokenizer, &line).unwrap();
            assert!(!answer.contains('\n'));
            let answer = json(&answer);
            assert_eq!(answer["id"], row["id"]);
            assert_eq!(ids(&answer["ids"]), ids(&row["ids"]), "{}", row["id"]);
            let back = json(&detokenize_line(&tokenizer, &answer.to_string()).unwrap());
            assert_eq!(str(&back, "text"), text, "{}", row["id"]);
        }
    }
}

#[test]
fn rows_are_parsed() {
    let tools = json(&read(&testdata("recovery_tools.json")));
    for name in ["recovery_cases.jsonl", "reply_cases.jsonl"] {
        for line in lines(&testdata(name)) {
            let mut row = json(&line);
            row["tools"] = tools.clone();
            let mut answer = json(&parse_line(&row.to_string()).unwrap());
            let id = answer.as_object_mut().unwrap().shift_remove("id");
            assert_eq!(id.as_ref(), row.get("id"));
            assert_eq!(answer, row["expected"], "{}", row["id"]);
        }
    }
}

#[test]
fn a_row_that_has_no_rendering_answers_with_the_reason() {
    for (messages, said) in [
        (
            r#"[{"role": "moderator", "content": "x"}]"#,
            "messages[0]: role: found \"moderator\"",
        ),
        (
            r#"[{"role": "user", "content": 7}]"#,
            "messages[0]: content: found 7",
        ),
        (r#"[{"role": "user", "content": [{"type": 1}]}]"#, "content"),
        (
            r#"[{"role": "user", "task": "dance"}]"#,
            "task: found \"dance\"",
        ),
        (r#"[{"role": "system", "tools": [{}]}]"#, "function"),
        (
            r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]"#,
            "arguments",
        ),
        (
            r#"["x"]"#,
            "messages[0]: message: found \"x\", expected an object",
        ),
        (r#"[{"role": "developer", "content": ""}]"#, "turn 0"),
    ] {
        let answer = render_line(&format!(r#"{{"id": 1, "messages": {messages}}}"#)).unwrap();
        let answer = json(&answer);
        assert_eq!(answer["id"], 1);
        assert!(str(&answer, "error").contains(said), "{answer}");
    }
}

#[test]
fn a_line_that_is_no_row_is_an_error_that_names_what_is_wrong() {
    let tokenizer = small_tokenizer();
    let tokenize = |line: &str| tokenize_line(&tokenizer, line);
    let detokenize = |line: &str| detokenize_line(&tokenizer, line);
    let cases: [(Result<String, DoorError>, &str); 18] = [
        (tokenize(""), "not a JSON line"),
        (tokenize("{\"id\": 1"), "not a JSON line"),
        (tokenize("[]"), "the line: found [], expected an object"),
        (tokenize("{\"text\": \"x\"}"), "id: found null"),
        (
            tokenize("{\"id\": 1}"),
            "text: found null, expected a string",
        ),
        (tokenize("{\"id\": 1, \"text\": 7}"), "text: found 7"),
        (detokenize("{\"id\": 1}"), "ids: found null"),
        (
            detokenize("{\"id\": 1, \"ids\": [0, -1]}"),
            "ids[1]: found -1",
        ),
        (
            detokenize("{\"id\": 1, \"ids\": [99999]}"),
            "token id 99999 at index 0",
        ),
        (
            render_line("{\"id\": 1, \"messages\": {}}"),
            "messages: found {}",
        ),
        (
            render_line("{\"id\": 1, \"messages\": [], \"context\": 3}"),
            "context: found 3",
        ),
        (
            render_line("{\"id\": 1, \"messages\": [], \"thinking_mode\": \"deep\"}"),
            "thinking_mode: found \"deep\", expected chat or thinking",
        ),
        (
            render_line("{\"id\": 1, \"messages\": [], \"add_bos\": 1}"),
            "add_bos: found 1",
        ),
        (
            render_line("{\"id\": 1, \"messages\": [], \"revision\": \"1\"}"),
            "revision",
        ),
        (parse_line("{\"id\": 1}"), "text: found null"),
        (
            parse_line("{\"id\": 1, \"text\": \"\", \"end\": \"eos\"}"),
            "end: found \"eos\"",
        ),
        (
            parse_line("{\"id\": 1, \"text\": \"\", \"tools\": []}"),
            "tools: found []",
        ),
        (
            parse_line("{\"id\": 1, \"text\": \"\", \"tools_declared\": true}"),
            "tools: found null",
        ),
    ];
    for (result, said) in cases {
        let error = result.expect_err(said).to_string();
        assert!(error.contains(said), "{error:?} does not say {said:?}");
    }
}
