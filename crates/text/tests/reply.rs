//! Replies are read the same however they arrive, and as the official grammar reads them.

mod common;
#[path = "common/exercise.rs"]
mod exercise;

use common::{cases, json, read, rows, str, testdata};
use ds4_text::{
    EndReason, Event, ParsedCall, Phase, Reply, ReplyParser, Start, ToolSchemas, parse_strict,
};
use exercise::parse_chunks;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::Value;

fn tools() -> ToolSchemas {
    let tools = json(&read(&testdata("recovery_tools.json")));
    tools.as_object().unwrap().clone().into_iter().collect()
}

/// Checks that a text gives the same reply whole, byte by byte and in 100 random cuts.
fn parse_all_ways(start: Start, tools: &ToolSchemas, text: &str, end: EndReason) -> Reply {
    let reply = parse_chunks(start, tools, [text.as_bytes()], end);
    assert_eq!(
        parse_chunks(start, tools, text.as_bytes().chunks(1), end),
        reply,
        "byte by byte: {text:?}"
    );
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for _ in 0..100 {
        let mut rest = text.as_bytes();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let longest = 1 << (rng.next_u32() % 6);
            let (chunk, behind) =
                rest.split_at(rest.len().min(1 + rng.next_u32() as usize % longest));
            chunks.push(chunk);
            rest = behind;
        }
        let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.len()).collect();
        let found = parse_chunks(start, tools, chunks, end);
        assert_eq!(found, reply, "in chunks of {lengths:?}: {text:?}");
    }
    reply
}

/// Checks a row of `recovery_cases.jsonl` or `reply_cases.jsonl`.
fn check_case(row: &Value, tools: &ToolSchemas) {
    let start = match row["start_in_reasoning"] == true {
        true => Start::Reasoning,
        false => Start::Content,
    };
    let declared = match row["tools_declared"] == true {
        true => tools.clone(),
        false => ToolSchemas::default(),
    };
    let end = match str(row, "end") {
        "stop" => EndReason::Stop,
        "length" => EndReason::Length,
        _ => EndReason::Cancelled,
    };
    let reply = parse_all_ways(start, &declared, str(row, "text"), end);
    let expected = &row["expected"];
    let calls = expected["tool_calls"].as_array().unwrap().iter();
    let call = |call: &Value| ParsedCall {
        name: str(call, "name").to_owned(),
        arguments: str(call, "arguments").to_owned(),
        complete: call["complete"] == true,
    };
    let expected = Reply {
        reasoning: str(expected, "reasoning").to_owned(),
        content: str(expected, "content").to_owned(),
        tool_calls: calls.map(call).collect(),
        malformed: expected["malformed"].as_str().map(String::from),
        implicit_think_end: expected["implicit_think_end"] == true,
        block_start: reply.block_start,
    };
    assert_eq!(reply, expected, "{}", str(row, "id"));
    for call in reply.tool_calls.iter().filter(|call| call.complete) {
        assert!(json(&call.arguments).is_object(), "{}", call.arguments);
    }
}

#[test]
fn every_recovery_case_is_recovered_however_it_arrives() {
    let tools = tools();
    for name in ["recovery_cases.jsonl", "reply_cases.jsonl"] {
        for row in rows(&testdata(name)) {
            check_case(&row, &tools);
        }
    }
}

#[test]
fn both_parsers_read_what_the_official_parser_reads() {
    let tools: ToolSchemas = ["f", "lookup", "ping", "save"]
        .map(|name| (name.to_owned(), json("{}")))
        .into_iter()
        .collect();
    for row in rows(&testdata("parse_cases.jsonl")) {
        let id = str(&row, "id");
        let thinking = row["thinking_mode"] == "thinking";
        let text = str(&row, "text");
        let strict = parse_strict(text, thinking);
        if row["expected_error"].is_string() {
            assert!(strict.is_err(), "{id}: {strict:?}");
            continue;
        }
        let strict = strict.unwrap();
        let expected = &row["expected"];
        assert_eq!(strict.reasoning, str(expected, "reasoning_content"), "{id}");
        assert_eq!(strict.content, str(expected, "content"), "{id}");
        let calls = expected["tool_calls"].as_array().unwrap();
        assert_eq!(strict.tool_calls.len(), calls.len(), "{id}");
        for (found, expected) in strict.tool_calls.iter().zip(calls) {
            let expected = &expected["function"];
            assert_eq!(found.name, str(expected, "name"), "{id}");
            assert_eq!(found.arguments, str(expected, "arguments"), "{id}");
            assert!(found.complete);
        }

        let start = if thinking {
            Start::Reasoning
        } else {
            Start::Content
        };
        let text = text.strip_suffix("<｜end▁of▁sentence｜>").unwrap();
        let tolerant = parse_all_ways(start, &tools, text, EndReason::Stop);
        if id == "invalid_json_not_checked" {
            // The one deliberate difference: a value that is not JSON becomes a string.
            assert_eq!(tolerant.tool_calls[0].arguments, r#"{"a": "oops"}"#);
        } else {
            assert_eq!(tolerant, strict, "{id}");
        }
    }
}

#[test]
fn a_continued_text_has_no_beginning() {
    let read = |start| {
        let mut parser = ReplyParser::new(start, ToolSchemas::default());
        parser.push("<think>a</think>b");
        let (_, reply) = parser.finish(EndReason::Stop);
        (reply.reasoning, reply.content)
    };
    let texts = |reasoning: &str, content: &str| (reasoning.to_owned(), content.to_owned());
    assert_eq!(read(Start::Reasoning), texts("a", "b"));
    assert_eq!(read(Start::Content), texts("a", "b"));
    assert_eq!(read(Start::WithinReasoning), texts("<think>a", "b"));
    assert_eq!(read(Start::WithinContent), texts("", "<think>a</think>b"));
}

#[test]
fn plain_xml_is_a_call_only_when_asked_for() {
    let text = "A\n\n<tool_calls><invoke name=\"lookup\"><parameter name=\"key\" string=\"true\">\
                x</parameter></invoke></tool_calls>";
    let read = |lenient, text: &str| {
        let mut parser = ReplyParser::new(Start::Content, tools()).lenient_plain_xml(lenient);
        for c in text.chars() {
            parser.push(c.encode_utf8(&mut [0; 4]));
        }
        parser.finish(EndReason::Stop).1
    };
    assert_eq!(read(false, text).content, text);
    let reply = read(true, text);
    assert_eq!((reply.content.as_str(), reply.malformed), ("A", None));
    assert_eq!(reply.tool_calls[0].arguments, r#"{"key": "x"}"#);
    assert!(reply.tool_calls[0].complete);
    // In a block that is written with DSML, plain tags stay text.
    let text = "<｜DSML｜tool_calls><｜DSML｜invoke name=\"lookup\"><｜DSML｜parameter name=\"key\" \
                string=\"true\"></parameter></｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls>";
    assert_eq!(
        read(true, text).tool_calls[0].arguments,
        r#"{"key": "</parameter>"}"#
    );
    let html = "<p><invoke name=\"nope\"></p><tool_calls>";
    assert_eq!(read(true, html).content, html);
}

#[test]
fn the_phase_tells_markup_from_free_text() {
    let mut parser = ReplyParser::new(Start::Reasoning, tools());
    for (text, phase) in [
        ("", Phase::Reasoning),
        ("a < b", Phase::Reasoning),
        ("</think>", Phase::Content),
        ("A <", Phase::Content),
        ("｜DSML", Phase::Markup),
        ("x", Phase::Content),
        ("\n\n<｜DSML｜tool_calls", Phase::Markup),
        (">\n<｜DSML｜invoke name=\"look", Phase::Markup),
        (
            "up\">\n<｜DSML｜parameter name=\"key\" string=\"true\"",
            Phase::Markup,
        ),
        (">", Phase::Value),
        ("a <b> </", Phase::Value),
        ("｜DSML｜", Phase::Markup),
        ("parameter>", Phase::Markup),
        (
            "<｜DSML｜parameter name=\"x\" string=\"false\">",
            Phase::Markup,
        ),
        ("[1, \"a", Phase::Value),
        ("\\\"", Phase::Value),
        ("b\"", Phase::Markup),
        ("]</｜DSML｜parameter></｜DSML｜invoke>", Phase::Markup),
        ("<｜DSML｜invoke name=\"ping\">{", Phase::Markup),
        ("\"k", Phase::Value),
        ("\": 1}</｜DSML｜invoke>", Phase::Markup),
        ("</｜DSML｜tool_calls>", Phase::Done),
        ("more", Phase::Done),
    ] {
        parser.push(text);
        assert_eq!(parser.phase(), phase, "after {text:?}");
    }
}

#[test]
fn text_is_emitted_as_soon_as_nothing_can_change_it() {
    let mut parser = ReplyParser::new(Start::Content, tools());
    let content = |text: &str| vec![Event::ContentDelta(text.to_owned())];
    assert_eq!(
        parser.push(" \n"),
        [],
        "blanks wait for the first character"
    );
    assert_eq!(parser.push("a"), content(" \na"));
    assert_eq!(
        parser.push("b\n\n\n"),
        content("b\n"),
        "two newlines may belong to a block"
    );
    assert_eq!(parser.push("c <"), content("\n\nc "));
    assert_eq!(parser.push("｜"), []);
    assert_eq!(parser.push("x"), content("<｜x"));
    assert_eq!(
        parser
            .push("<｜DSML｜tool_calls><｜DSML｜invoke name=\"lookup\">")
            .len(),
        2
    );
    let parameter = parser.push("<｜DSML｜parameter name=\"key\" string=\"true\">v&l");
    let text = r#""key": "v"#.to_owned();
    assert_eq!(parameter, [Event::ToolArgsDelta { index: 0, text }]);
    let text = "&l<".to_owned();
    assert_eq!(parser.push("<<"), [Event::ToolArgsDelta { index: 0, text }]);
}

#[test]
fn the_block_begins_where_its_newlines_do() {
    let before = "Why.</think>A\n";
    let text = format!("{before}\n\n<｜DSML｜tool_calls>garbage");
    let reply = parse_all_ways(Start::Reasoning, &tools(), &text, EndReason::Stop);
    assert_eq!(reply.block_start, Some(before.len()));
}

/// Text made of what the parser looks for, whole and in parts.
fn marked_up_texts() -> impl Strategy<Value = String> {
    let parts: Vec<&'static str> = vec![
        "a",
        " ",
        "\n",
        "\n\n",
        "<",
        ">",
        "/",
        "\"",
        "'",
        "“",
        "=",
        "&",
        "{",
        "}",
        "｜",
        "|",
        "DSML",
        "é",
        "<think>",
        "</think>",
        "<thi",
        "<｜DSML｜",
        "</｜DSML｜",
        "tool_calls",
        "invoke",
        "parameter",
        "<｜DSML｜tool_calls>",
        "</｜DSML｜tool_calls>",
        "<DSML|function_calls>",
        "<｜DSML｜invoke name=\"lookup\">",
        "<｜DSML｜invoke name='nope'>",
        "</｜DSML｜invoke>",
        "<｜DSML｜invoke name=\"ping\"/>",
        "<｜DSML｜parameter name=\"key\" string=\"true\">",
        "<｜DSML｜parameter name=\"limit\" string=\"false\">",
        "<｜DSML｜parameter name=\"x\">",
        "</｜DSML｜parameter>",
        "&lt;/｜DSML｜parameter>",
        "&lt;/",
        "{\"key\": 1}",
        "None",
        "\\",
    ];
    prop::collection::vec(prop::sample::select(parts), 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn any_text_gives_the_same_reply_in_any_chunks(
        text in marked_up_texts(),
        reasoning in any::<bool>(),
        has_tools in any::<bool>(),
        stopped in any::<bool>(),
        cuts in prop::collection::vec(1usize..30, 1..20),
    ) {
        let start = if reasoning { Start::Reasoning } else { Start::Content };
        let tools = if has_tools { tools() } else { ToolSchemas::default() };
        let end = if stopped { EndReason::Stop } else { EndReason::Length };
        let whole = parse_chunks(start, &tools, [text.as_bytes()], end);
        let bytes = parse_chunks(start, &tools, text.as_bytes().chunks(1), end);
        prop_assert_eq!(&bytes, &whole);
        let mut rest = text.as_bytes();
        let mut chunks = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, behind) = rest.split_at(rest.len().min(*cut));
            chunks.push(chunk);
            rest = behind;
        }
        let cut = parse_chunks(start, &tools, chunks, end);
        prop_assert_eq!(&cut, &whole);
        for call in whole.tool_calls.iter().filter(|call| call.complete) {
            prop_assert!(json(&call.arguments).is_object(), "{}", call.arguments);
        }
        if !has_tools {
            prop_assert!(whole.tool_calls.is_empty() && whole.malformed.is_none());
        }
    }
}

/// Texts that make a parser which looks at anything twice take quadratic time.
#[test]
fn reading_takes_linear_time_byte_by_byte() {
    const N_BYTES: usize = 400_000;
    let call = "<｜DSML｜tool_calls><｜DSML｜invoke name=\"lookup\">";
    let text = "<｜DSML｜parameter name=\"key\" string=\"true\">";
    let json = "<｜DSML｜parameter name=\"x\" string=\"false\">";
    for (before, unit) in [
        (String::new(), " "),
        (String::new(), "\n"),
        (String::new(), "a"),
        (String::new(), "<"),
        (String::new(), "<think>"),
        (
            format!("<think>{}</think>", " ".repeat(N_BYTES)),
            "<think></think>",
        ),
        (String::new(), "<｜DSML｜tool_calls "),
        (String::new(), "<DSML|tool_calls>\n"),
        ("<DSML|tool_calls>".to_owned(), "\n"),
        ("<DSML|tool_calls a=\"".to_owned(), "<DSML|invoke a='"),
        ("<DSML|invoke a=".to_owned(), "“<DSML|invoke a=\""),
        ("<｜DSML｜tool_calls>".to_owned(), " "),
        (call.to_owned(), "\n"),
        (call.to_owned(), "</｜DSML｜parameter>"),
        (call.to_owned(), "{\"a\": \"<\""),
        (format!("{call}{text}"), "\\"),
        (format!("{call}{text}"), "<"),
        (format!("{call}{text}"), "&lt;/"),
        (format!("{call}{text}"), "<｜DSML｜parameter a=\""),
        (
            format!("{call}{text}</｜DSML｜parameter>"),
            "<｜DSML｜parameter name=\"key\"/>",
        ),
        (format!("{call}{json}"), "[<"),
    ] {
        let text = before.clone() + &unit.repeat(N_BYTES / unit.len());
        let whole = std::time::Instant::now();
        parse_chunks(Start::Content, &tools(), [text.as_bytes()], EndReason::Stop);
        let whole = whole.elapsed();
        let bytes = std::time::Instant::now();
        parse_chunks(
            Start::Content,
            &tools(),
            text.as_bytes().chunks(1),
            EndReason::Stop,
        );
        let bytes = bytes.elapsed();
        println!("{whole:?} whole, {bytes:?} byte by byte: {before:?} {unit:?}");
        // A quadratic reader would need 8e10 steps.
        assert!(
            whole.as_secs() < 3 && bytes.as_secs() < 3,
            "{before:?} {unit:?}"
        );
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn any_bytes_are_read_without_harm(
        how in any::<u8>(),
        text in marked_up_texts(),
        noise in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        exercise::reply(&[&[how], text.as_bytes(), &noise].concat());
        exercise::reply(&noise);
    }
}
