//! What may follow in a block of calls.

use std::path::Path;
use std::sync::Arc;

use ds4_server::calls::{CallReader, CallVocabulary};
use ds4_server::generation::{Endpoint, Generation, PromptSource, Tool, ToolChoice};
use ds4_text::{
    EndReason, Message, RenderOptions, ReplyParser, Start, Tokenizer, ToolCall, ToolSchemas,
    parse_strict, render,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::script::{tokenizer, tokenizer_with_long_tokens};

/// What stands before the reader begins.
const OPEN: &str = "\n\n<｜DSML｜";

fn generation(tools: &[(String, Value)], tool_choice: ToolChoice) -> Generation {
    let tools = tools.iter().map(|(name, schema)| Tool {
        name: name.clone(),
        function: json!({"name": name, "parameters": schema}),
        deferred: false,
        origin: json!(null),
    });
    Generation {
        tools: tools.collect(),
        tool_choice,
        ..Generation::new(Endpoint::Chat, PromptSource::Text(String::new()))
    }
}

/// A small random source that only goes forward.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Writes a block by drawing among the tokens that are admitted. Every other draw is among those
/// that end things, so that the block has an end.
fn write_block(reader: &mut CallReader, tokenizer: &Tokenizer, dice: &mut Dice) -> String {
    let ends: Vec<u32> = ["<", "/", "\"", "}", "]", "</", "\"</", "}</"]
        .iter()
        .flat_map(|text| tokenizer.encode(text))
        .chain([tokenizer.protocol().dsml])
        .collect();
    let mut bytes = OPEN.as_bytes().to_vec();
    for _ in 0..100_000 {
        let Some(admitted) = reader.admitted() else {
            return String::from_utf8_lossy(&bytes).into_owned();
        };
        let all = 0..tokenizer.n_vocab() as u32;
        let mut choice: Vec<u32> = all.filter(|token| admitted.contains(*token)).collect();
        assert!(
            !choice.is_empty(),
            "nothing may follow {}",
            String::from_utf8_lossy(&bytes)
        );
        let some: Vec<u32> = ends
            .iter()
            .copied()
            .filter(|t| admitted.contains(*t))
            .collect();
        if dice.below(2) == 0 && !some.is_empty() {
            choice = some;
        }
        let token = choice[dice.below(choice.len())];
        let word = tokenizer.token_bytes(token);
        assert!(reader.push(word), "what is admitted can be read");
        bytes.extend_from_slice(word);
    }
    panic!("no end of {}", String::from_utf8_lossy(&bytes));
}

fn value_schema() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "integer"})),
        Just(json!({"type": "number"})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"type": "object"})),
        Just(json!({"type": "array", "items": {"type": "string"}})),
        Just(json!({"type": ["string", "null"]})),
        Just(json!({"enum": ["low", "high", "low</b>", ""]})),
        Just(json!({"enum": ["</｜DSML｜invoke>"]})),
        Just(json!({"anyOf": [{"type": "integer"}, {"type": "boolean"}]})),
        Just(json!({"const": "only"})),
        Just(json!({"type": []})),
        Just(json!({"$ref": "#/$defs/x"})),
        Just(json!(true)),
        Just(json!({})),
    ]
}

fn tool() -> impl Strategy<Value = (String, Value)> {
    let name = "[A-Za-z0-9_.:/-]{1,6}";
    let key = prop_oneof!["[a-z]{1,3}", "[ -~é｜<>\"&]{1,5}"];
    let properties = proptest::collection::vec((key, value_schema(), any::<bool>()), 0..4);
    let others = prop_oneof![
        3 => Just(None),
        1 => Just(Some(json!(false))),
        1 => Just(Some(json!(true))),
        1 => Just(Some(json!({"type": "string"}))),
    ];
    let kind = 0..6;
    (name, properties, others, kind).prop_map(|(name, properties, others, kind)| {
        let mut schema = json!({"type": "object"});
        let listed: Map<String, Value> = properties
            .iter()
            .map(|(key, schema, _)| (key.clone(), schema.clone()))
            .collect();
        let required: Vec<&String> = properties
            .iter()
            .filter_map(|(key, _, required)| required.then_some(key))
            .collect();
        schema["required"] = json!(required);
        schema["properties"] = Value::Object(listed);
        if let Some(others) = others {
            schema["additionalProperties"] = others;
        }
        match kind {
            0 => (name, json!(null)),
            1 => (
                name,
                json!({"type": "object", "required": ["unknown", "a\"b"]}),
            ),
            _ => (name, schema),
        }
    })
}

/// Whether a value is of the types that its schema lists, where it does.
fn is_of(schema: &Value, value: &Value) -> bool {
    let named = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => value
            .to_string()
            .bytes()
            .all(|b| b == b'-' || b.is_ascii_digit()),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        _ => value.is_array(),
    };
    let any_of = |schemas: &Vec<Value>| schemas.iter().any(|schema| is_of(schema, value));
    match (&schema["type"], &schema["enum"], &schema["anyOf"]) {
        (Value::String(name), _, _) => named(name),
        (Value::Array(names), _, _) if !names.is_empty() => {
            names.iter().filter_map(Value::as_str).any(named)
        }
        (_, Value::Array(values), _) if values.len() > 1 => values.contains(value),
        (_, Value::Array(_), _) => value.is_string(),
        (_, _, Value::Array(schemas)) => any_of(schemas),
        _ => schema["const"].is_null() || schema["const"] == *value,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(150)
    })]

    #[test]
    fn whatever_is_drawn_is_a_block_that_the_strict_grammar_takes(
        tools in proptest::collection::btree_map("[A-Za-z0-9_.:/-]{1,6}", tool(), 1..4),
        allowed in any::<proptest::sample::Index>(),
        narrows in any::<bool>(),
        seed in 1..u64::MAX,
        long in any::<bool>(),
    ) {
        let tokenizer = if long { tokenizer_with_long_tokens() } else { tokenizer() };
        let tools: Vec<(String, Value)> =
            tools.into_iter().map(|(name, (_, schema))| (name, schema)).collect();
        let only = &tools[allowed.index(tools.len())].0;
        let choice = match narrows {
            true => ToolChoice::Allowed(vec![only.clone()]),
            false => ToolChoice::Auto,
        };
        let vocabulary = Arc::new(CallVocabulary::new(&tokenizer));
        let mut reader =
            CallReader::new(vocabulary, &generation(&tools, choice)).expect("tools");
        let text = write_block(&mut reader, &tokenizer, &mut Dice(seed));

        let whole = format!("{text}<｜end▁of▁sentence｜>");
        let strict = parse_strict(&whole, false)
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
        let schemas: ToolSchemas = tools.iter().cloned().collect();
        let mut parser = ReplyParser::new(Start::Content, schemas);
        parser.push(&text);
        let (_, tolerant) = parser.finish(EndReason::Stop);
        prop_assert_eq!(tolerant.malformed, None, "{}", text);
        prop_assert_eq!(strict.tool_calls.len(), tolerant.tool_calls.len(), "{}", text);
        for (strict, call) in strict.tool_calls.iter().zip(&tolerant.tool_calls) {
            prop_assert!(call.complete, "{}", text);
            prop_assert_eq!(&strict.name, &call.name);
            let tool = tools.iter().find(|(name, _)| *name == call.name);
            let (name, schema) = tool.expect("a declared name");
            prop_assert!(!narrows || name == only, "{}", text);
            let arguments = ds4_text::json::parse(&strict.arguments)
                .unwrap_or_else(|e| panic!("{e} in {}\n{text}", strict.arguments));
            let arguments = arguments.as_object().expect("an object");
            let properties = schema["properties"].as_object();
            let others = match &schema["additionalProperties"] {
                Value::Null => properties.is_none(),
                others => *others != json!(false),
            };
            for (key, value) in arguments {
                let key = key.replace("&quot;", "\"");
                match properties.and_then(|all| all.get(&key)) {
                    None => prop_assert!(others, "{} is not declared: {}", key, text),
                    Some(schema) => prop_assert!(is_of(schema, value), "{}: {}", key, text),
                }
            }
            for key in schema["required"].as_array().into_iter().flatten() {
                let key = key.as_str().expect("a name");
                if others || properties.is_some_and(|all| all.contains_key(key)) {
                    let written = key.replace('"', "&quot;");
                    prop_assert!(arguments.contains_key(&written), "{} is missing: {}", key, text);
                }
            }
        }
    }
}

/// The vocabulary of the published model, where the shared data is.
fn published() -> Option<Arc<Tokenizer>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = folder.ancestors();
    let path = all.find_map(|folder| {
        let path = folder.join("shared/data/tokenizer/tokenizer.json");
        path.exists().then_some(path)
    })?;
    let text = std::fs::read_to_string(path).expect("text");
    Some(Arc::new(
        Tokenizer::from_tokenizer_json(&text).expect("a vocabulary"),
    ))
}

#[test]
fn every_token_of_a_call_as_it_is_rendered_is_admitted() {
    let text = |value: &str| json!({"type": "object", "properties": {"x": {"type": value}}});
    let tools: Vec<(String, Value)> = [
        ("mcp__files-2.read", text("string")),
        ("mcp__files-2.read_all", text("array")),
        ("list", json!({"type": "object", "properties": {}})),
        ("free", json!({"type": "object"})),
        ("set", text("number")),
        (
            "pick",
            json!({"properties": {"x": {"enum": ["a", "ab", "(c)"]}}}),
        ),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into();
    let calls: Vec<(&str, Value)> = vec![
        ("mcp__files-2.read", json!({"x": ""})),
        ("mcp__files-2.read", json!({"x": "/tmp/a b.rs"})),
        (
            "mcp__files-2.read",
            json!({"x": "fn f() -> Vec<u8> {\n    \"é\";\n}\n"}),
        ),
        (
            "mcp__files-2.read",
            json!({"x": "</parameter></｜x>\n\n<b></b>😀 </ <"}),
        ),
        ("mcp__files-2.read_all", json!({"x": []})),
        (
            "mcp__files-2.read_all",
            json!({"x": [{"a": ["(", ")"], "b": -1.5e-7}, "x</y>", null]}),
        ),
        ("list", json!({})),
        ("free", json!({"path": "x", "n_max": 3, "deep": {"a": {}}})),
        ("set", json!({"x": 12345.5})),
        ("pick", json!({"x": "(c)"})),
        ("pick", json!({"x": "ab"})),
    ];
    let mut replies: Vec<Vec<(&str, Value)>> = calls.iter().map(|c| vec![c.clone()]).collect();
    replies.push(calls);
    let mut tokenizers = vec![tokenizer()];
    match published() {
        Some(tokenizer) => tokenizers.push(tokenizer),
        None => println!("skipped in part: no shared data beside any parent folder"),
    }
    for tokenizer in tokenizers {
        let vocabulary = Arc::new(CallVocabulary::new(&tokenizer));
        for reply in &replies {
            let mut said = Message::assistant("");
            said.tool_calls = reply
                .iter()
                .map(|(name, arguments)| ToolCall {
                    id: String::new(),
                    name: (*name).to_owned(),
                    arguments: arguments.to_string(),
                })
                .collect();
            let messages = [Message::user("x"), said];
            let prompt = render(&messages, &RenderOptions::default()).expect("a prompt");
            let block = &prompt.text[prompt.replies[0].range.clone()];
            let tokens = tokenizer.encode(block);
            let wanted = generation(&tools, ToolChoice::Auto);
            let mut reader = CallReader::new(Arc::clone(&vocabulary), &wanted).expect("tools");
            let mut done = String::new();
            for token in tokens {
                let word = String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned();
                if done.starts_with(OPEN) {
                    let admitted = reader.admitted().expect("not the end");
                    assert!(admitted.contains(token), "{word:?} behind {done}");
                    assert!(
                        reader.push(tokenizer.token_bytes(token)),
                        "{word:?} behind {done}"
                    );
                }
                done.push_str(&word);
            }
            assert!(reader.admitted().is_none(), "{done} is not the end");
        }
    }
}

#[test]
fn a_string_takes_everything_but_closing_tags() {
    let tools = [(
        "f".to_owned(),
        json!({"properties": {"x": {"type": "string"}}}),
    )];
    let tokenizer = tokenizer();
    let vocabulary = Arc::new(CallVocabulary::new(&tokenizer));
    let open =
        "tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"x\" string=\"true\">";
    for (value, taken) in [
        ("<｜DSML｜invoke name=\"f\">", true),
        ("</think><think>", true),
        ("</tool_calls>", true),
        ("</｜DSML｜invoke>", false),
        ("</|DSML|parameter>", false),
        ("</DSML｜x", false),
        ("</｜DSML｜parameter></｜DSML｜parameter>", false),
        (
            "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
            true,
        ),
    ] {
        let wanted = generation(&tools, ToolChoice::Auto);
        let mut reader = CallReader::new(Arc::clone(&vocabulary), &wanted).expect("tools");
        assert!(reader.push(open.as_bytes()));
        for end in [tokenizer.protocol().eos, tokenizer.protocol().user] {
            assert!(
                !reader.admitted().expect("a value").contains(end),
                "a reply cannot end here"
            );
        }
        let all = tokenizer.encode(value).into_iter().all(|token| {
            reader.admitted().is_some_and(|set| set.contains(token))
                && reader.push(tokenizer.token_bytes(token))
        });
        assert_eq!(all, taken, "{value}");
    }
}

#[test]
fn without_tools_that_may_be_called_there_is_nothing_to_keep() {
    let vocabulary = Arc::new(CallVocabulary::new(&tokenizer()));
    let tools = [("f".to_owned(), json!({}))];
    for (tools, choice, kept) in [
        (&tools[..], ToolChoice::Auto, true),
        (&tools[..], ToolChoice::None, false),
        (&tools[..], ToolChoice::Allowed(Vec::new()), false),
        (&tools[..], ToolChoice::Required(Vec::new()), true),
        (&tools[..0], ToolChoice::Auto, false),
    ] {
        let wanted = generation(tools, choice);
        assert_eq!(
            CallReader::new(Arc::clone(&vocabulary), &wanted).is_some(),
            kept
        );
    }
}
