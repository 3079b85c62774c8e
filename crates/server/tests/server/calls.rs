//! What may follow in a block of calls.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use ds4_conformance::golden;
use ds4_server::calls::CallReader;
use ds4_server::generation::{
    Endpoint, Generation, InputGrammar, OutputSchema, PromptSource, Tool, ToolChoice,
};
use ds4_server::schema::Schemas;
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
        input: None,
        deferred: false,
        origin: json!(null),
    });
    Generation {
        tools: tools.collect(),
        tool_choice,
        ..Generation::new(Endpoint::Chat, PromptSource::Text(String::new()))
    }
}

/// What reads calls of these tools.
fn reader(tokenizer: &Tokenizer, wanted: &Generation) -> CallReader {
    let schemas = Schemas::new(tokenizer).expect("a vocabulary");
    schemas.calls(wanted).expect("schemas").0.expect("tools")
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
        let Some(admitted) = reader.admitted().expect("within the limits") else {
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
        assert!(reader.push(token), "what is admitted can be read");
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
        Just(json!({"$ref": "#/$defs/point"})),
        Just(json!({"$ref": "#/$defs/colour"})),
        Just(json!({"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "string"}, {"type": "null"}]})),
        Just(json!({"type": "array", "minItems": 1, "maxItems": 3,
                    "items": {"$ref": "#/$defs/point"}})),
        Just(json!({"type": "object", "additionalProperties": {"type": "integer"}})),
        Just(
            json!({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}],
                    "items": false, "minItems": 2})
        ),
        Just(json!({"type": "integer", "minimum": 3, "maximum": 250})),
        Just(json!({"type": "string", "minLength": 2, "maxLength": 5})),
        Just(json!({"type": "string", "pattern": "^k[0-9]+$"})),
        Just(json!({"allOf": [{"$ref": "#/$defs/colour"}]})),
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
        schema["$defs"] = json!({
            "point": {"type": "object", "properties": {
                "x": {"type": "integer"}, "colour": {"$ref": "#/$defs/colour"}},
                "required": ["x"], "additionalProperties": false},
            "colour": {"enum": ["red", "green", "blue"]},
            "tree": {"type": "object", "properties": {
                "leaf": {"type": "boolean"},
                "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
                "required": ["leaf", "left"], "additionalProperties": false},
        });
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

/// Whether a value follows a schema, of the keywords that stand in this file.
fn follows(schema: &Value, value: &Value, root: &Value) -> bool {
    let Value::Object(members) = schema else {
        return *schema != json!(false);
    };
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
    let all_of = |test: &dyn Fn(&Value) -> bool, name: &str| members.get(name).is_none_or(test);
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let number = |value: &Value| value.as_f64().expect("a number");
    let properties = &schema["properties"];
    all_of(&|name| match name {
        Value::String(name) => named(name),
        names => array(names).is_empty() || array(names).iter().filter_map(Value::as_str).any(named),
    }, "type")
        // A list of what cannot be written is not kept to.
        && all_of(&|listed| array(listed).contains(value) || array(listed).len() == 1, "enum")
        && all_of(&|only| only == value, "const")
        && all_of(&|schemas| array(schemas).iter().any(|s| follows(s, value, root)), "anyOf")
        && all_of(&|schemas| array(schemas).iter().all(|s| follows(s, value, root)), "allOf")
        && all_of(&|reference| {
            let target = root.pointer(&reference.as_str().expect("a reference")[1..]);
            target.is_none_or(|target| follows(target, value, root))
        }, "$ref")
        && all_of(&|least| !value.is_number() || number(value) >= number(least), "minimum")
        && all_of(&|most| !value.is_number() || number(value) <= number(most), "maximum")
        && value.as_str().is_none_or(|text| {
            let n = text.chars().count() as f64;
            all_of(&|least| n >= number(least), "minLength")
                && all_of(&|most| n <= number(most), "maxLength")
                // The one pattern there is.
                && all_of(&|_| text.len() > 1 && text.starts_with('k')
                    && text.bytes().skip(1).all(|b| b.is_ascii_digit()), "pattern")
        })
        && value.as_array().is_none_or(|items| {
            let first = schema["prefixItems"].as_array().map_or(0, Vec::len);
            all_of(&|least| items.len() as f64 >= number(least), "minItems")
                && all_of(&|most| items.len() as f64 <= number(most), "maxItems")
                && items.iter().enumerate().all(|(i, item)| match i < first {
                    true => follows(&schema["prefixItems"][i], item, root),
                    false => all_of(&|schema| follows(schema, item, root), "items"),
                })
        })
        && value.as_object().is_none_or(|found| {
            all_of(&|keys| array(keys).iter().all(|key| found.contains_key(key.as_str().expect("a name"))), "required")
                && found.iter().all(|(key, value)| match properties.get(key) {
                    Some(schema) => follows(schema, value, root),
                    None => all_of(&|schema| follows(schema, value, root), "additionalProperties"),
                })
        })
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
        static PLAIN: OnceLock<(Arc<Tokenizer>, Schemas)> = OnceLock::new();
        static LONG: OnceLock<(Arc<Tokenizer>, Schemas)> = OnceLock::new();
        let of = |tokenizer: Arc<Tokenizer>| {
            let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
            (tokenizer, schemas)
        };
        let (tokenizer, schemas) = match long {
            true => LONG.get_or_init(|| of(tokenizer_with_long_tokens())),
            false => PLAIN.get_or_init(|| of(tokenizer())),
        };
        let tools: Vec<(String, Value)> =
            tools.into_iter().map(|(name, (_, schema))| (name, schema)).collect();
        let only = &tools[allowed.index(tools.len())].0;
        let choice = match narrows {
            true => ToolChoice::Allowed(vec![only.clone()]),
            false => ToolChoice::Auto,
        };
        let (reader, _) = schemas.calls(&generation(&tools, choice)).expect("schemas");
        let mut reader = reader.expect("tools");
        let text = write_block(&mut reader, tokenizer, &mut Dice(seed));

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
            let root = schema;
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
                    Some(schema) => prop_assert!(follows(schema, value, root), "{}: {}", key, text),
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
        None => {
            golden::skipped("calls in the published vocabulary, which is not beside this checkout")
        }
    }
    for tokenizer in tokenizers {
        let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
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
            let (reader, _) = schemas.calls(&wanted).expect("schemas");
            let mut reader = reader.expect("tools");
            let mut done = String::new();
            for token in tokens {
                let word = String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned();
                if done.starts_with(OPEN) {
                    let admitted = reader.admitted().expect("within the limits");
                    let admitted = admitted.expect("not the end");
                    assert!(admitted.contains(token), "{word:?} behind {done}");
                    assert!(reader.push(token), "{word:?} behind {done}");
                }
                done.push_str(&word);
            }
            assert_eq!(reader.admitted(), Ok(None), "{done} is not the end");
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
        let mut reader = reader(&tokenizer, &wanted);
        assert!(reader.push_text(open.as_bytes()));
        let admitted = |reader: &mut CallReader| {
            let admitted = reader.admitted().expect("within the limits");
            admitted.expect("a value")
        };
        for end in [tokenizer.protocol().eos, tokenizer.protocol().user] {
            assert!(
                !admitted(&mut reader).contains(end),
                "a reply cannot end here"
            );
        }
        let all = tokenizer
            .encode(value)
            .into_iter()
            .all(|token| admitted(&mut reader).contains(token) && reader.push(token));
        assert_eq!(all, taken, "{value}");
    }
}

#[test]
fn content_can_be_ended_wherever_it_stands() {
    let tokenizer = tokenizer();
    let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
    let schema = json!({"type": "object", "additionalProperties": false,
        "required": ["n", "s", "l", "o"],
        "properties": {
            "n": {"type": "number"},
            "s": {"type": "string", "minLength": 2},
            "l": {"type": "array", "minItems": 2, "items": {"type": "integer", "minimum": 10}},
            "o": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "null"}},
                  "required": ["x", "y"], "additionalProperties": false}}});
    let text = "{\"n\": -12.5e3, \"s\": \"a\\u00e9b\", \"l\": [10, 1234, 56], \
                \"o\": {\"x\": 70, \"y\": null}}";
    let wanted = OutputSchema {
        schema,
        strict: true,
        place: "schema".to_owned(),
    };
    let tokens = tokenizer.encode(text);
    for n in 0..=tokens.len() {
        let (mut reader, _) = schemas.compile(&wanted).expect("a schema");
        for token in &tokens[..n] {
            reader.push(*token);
        }
        let begun = tokenizer.decode(&tokens[..n]).expect("text");
        let closing = reader
            .closing()
            .unwrap_or_else(|| panic!("no end of {begun}"));
        assert!(closing.len() < 120, "a long way to the end of {begun}");
        let whole = format!("{begun}{}", tokenizer.decode(&closing).expect("text"));
        let value: Value = serde_json::from_str(&whole).unwrap_or_else(|e| panic!("{e}: {whole}"));
        assert!(
            value["o"]["y"].is_null() && value["o"]["x"].is_i64(),
            "{whole}"
        );
    }
}

#[test]
fn a_map_gives_no_name_twice() {
    for tokenizer in [tokenizer(), tokenizer_with_long_tokens()] {
        let parameters = json!({"type": "object", "properties": {"a": {"type": "null"}},
                                "additionalProperties": {"type": "string"}});
        let tools = [("f".to_owned(), parameters)];
        let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
        let wanted = generation(&tools, ToolChoice::Auto);
        let one = |name: &str| {
            format!("<｜DSML｜parameter name=\"{name}\" string=\"true\">x</｜DSML｜parameter>\n")
        };
        let end = "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
        let invoke = "<｜DSML｜invoke name=\"f\">\n";
        for (parts, taken) in [
            (vec![one("b"), one("c"), end.to_owned()], true),
            (vec![one("b"), one("bb"), one("b/"), end.to_owned()], true),
            (vec![one("b"), one("c"), one("b"), end.to_owned()], false),
            (
                vec![
                    one("b"),
                    format!("</｜DSML｜invoke>\n{invoke}{}", one("b")),
                    end.to_owned(),
                ],
                true,
            ),
        ] {
            let text = format!("tool_calls>\n{invoke}{}", parts.concat());
            let (reader, _) = schemas.calls(&wanted).expect("schemas");
            let mut reader = reader.expect("tools");
            let read = tokenizer.encode(&text).into_iter().all(|token| {
                let admitted = reader.admitted().expect("within the limits");
                let admitted = admitted.is_none_or(|set| set.contains(token));
                admitted && reader.push(token)
            });
            assert_eq!(read, taken, "{text}");
        }
    }
}

#[test]
fn without_tools_that_may_be_called_there_is_nothing_to_keep() {
    let schemas = Schemas::new(&tokenizer()).expect("a vocabulary");
    let tools = [("f".to_owned(), json!({}))];
    for (tools, choice, kept) in [
        (&tools[..], ToolChoice::Auto, true),
        (&tools[..], ToolChoice::None, false),
        (&tools[..], ToolChoice::Allowed(Vec::new()), false),
        (&tools[..], ToolChoice::Required(Vec::new()), true),
        (&tools[..0], ToolChoice::Auto, false),
    ] {
        let wanted = generation(tools, choice);
        let (reader, _) = schemas.calls(&wanted).expect("schemas");
        assert_eq!(reader.is_some(), kept);
    }
}

/// The text of one call of `f` with one parameter, up to its value.
fn open(flag: &str) -> String {
    format!(
        "tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"input\" \
         string=\"{flag}\">"
    )
}

/// Whether a value and the end of its tag can be read.
fn takes(reader: &mut CallReader, tokenizer: &Tokenizer, value: &str) -> bool {
    let text = format!("{value}</｜DSML｜parameter>\n");
    tokenizer.encode(&text).into_iter().all(|token| {
        let admitted = reader.admitted().expect("within the limits");
        admitted.is_some_and(|set| set.contains(token)) && reader.push(token)
    })
}

#[test]
fn what_is_inside_a_value_follows_its_schema_and_all_that_it_refers_to() {
    let tokenizer = tokenizer();
    let defs = json!({
        "edit": {"type": "object", "properties": {
            "old": {"type": "string"}, "line": {"type": "integer", "minimum": 1}},
            "required": ["old"], "additionalProperties": false},
        "kind": {"type": "string", "enum": ["file", "folder"]},
    });
    for (schema, good, bad) in [
        (
            json!({"type": "array", "items": {"$ref": "#/$defs/edit"}}),
            vec!["[]", "[{\"old\": \"a\", \"line\": 7}]"],
            vec![
                "[{}]",
                "[{\"old\": 1}]",
                "[{\"old\": \"a\", \"line\": 0}]",
                "[ ]",
                "{}",
            ],
        ),
        (
            json!({"$ref": "#/$defs/edit"}),
            vec!["{\"old\": \"</b>\"}"],
            vec![
                "{\"old\": \"</｜DSML｜parameter>\"}",
                "{\"old\": \"a\", \"new\": 1}",
            ],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "number"}}),
            vec!["{}", "{\"a\": 1.5, \"b\": -2}"],
            vec!["{\"a\": \"x\"}", "{\"a\":1}"],
        ),
    ] {
        let tools = [(
            "f".to_owned(),
            json!({"properties": {"input": schema}, "$defs": defs}),
        )];
        for (values, taken) in [(good, true), (bad, false)] {
            for value in values {
                let mut reader = reader(&tokenizer, &generation(&tools, ToolChoice::Auto));
                assert!(reader.push_text(open("false").as_bytes()));
                assert_eq!(
                    takes(&mut reader, &tokenizer, value),
                    taken,
                    "{schema} {value}"
                );
            }
        }
    }
    let tools = [(
        "f".to_owned(),
        json!({"properties": {"input": {"$ref": "#/$defs/kind"}}, "$defs": defs}),
    )];
    for (format, value, taken) in [
        ("ipv6", "2001:db8::1", true),
        ("ipv6", "::", true),
        ("ipv6", "1:2:3:4:5:6:7:8", true),
        ("ipv6", "1:2:3", false),
        ("ipv6", "1::2::3", false),
        ("uri", "https://example.org/a%20b?c=/d#e", true),
        ("uri", "urn:isbn:0", true),
        ("uri", "no uri", false),
        ("uri", "//example.org", false),
        ("duration", "P1DT2H", true),
        ("duration", "P3W", true),
        ("duration", "P", false),
        ("duration", "PT", false),
    ] {
        let parameters = json!({"properties": {"input": {"type": "string", "format": format}}});
        let tools = [("f".to_owned(), parameters)];
        let mut reader = reader(&tokenizer, &generation(&tools, ToolChoice::Auto));
        assert!(reader.push_text(open("true").as_bytes()));
        assert_eq!(
            takes(&mut reader, &tokenizer, value),
            taken,
            "{format} {value}"
        );
    }
    for (value, taken) in [("file", true), ("fil", false), ("other", false)] {
        let mut reader = reader(&tokenizer, &generation(&tools, ToolChoice::Auto));
        assert!(reader.push_text(open("true").as_bytes()));
        assert_eq!(takes(&mut reader, &tokenizer, value), taken, "{value}");
    }
}

#[test]
fn a_tools_own_grammar_is_kept() {
    let tokenizer = tokenizer();
    let tools = [(
        "f".to_owned(),
        json!({"properties": {"input": {"type": "string"}},
                                         "required": ["input"]}),
    )];
    let regex = InputGrammar::Regex("a+/\\d{2}".to_owned());
    let patch = InputGrammar::Lark(PATCH.to_owned());
    let words = InputGrammar::Lark("start: /.+/".to_owned());
    let twice = InputGrammar::Lark("start: \"<<\" | \"<\"".to_owned());
    let whole = "*** Begin Patch\n*** Add File: a.rs\n+fn a() {}\n+\n*** End Patch";
    for (grammar, value, taken) in [
        (&regex, "aa/12", true),
        (&regex, "aa/1", false),
        (&patch, whole, true),
        (&patch, "*** Begin Patch\n*** End Patch", false),
        (&patch, "*** Begin Patch\n*** Add File: a\n+x\n", false),
        (
            &patch,
            "*** Begin Patch\n*** Update File: a\n@@ f\n-</b\n+</p>\n*** End Patch\n",
            true,
        ),
        (&patch, "hello", false),
        (&words, "</ <b>", true),
        (&words, "a\nb", false),
        (&words, "a</|DSML|", false),
        (&twice, "<", true),
        (&twice, "<<", true),
        (&twice, "<<<", false),
    ] {
        let mut wanted = generation(&tools, ToolChoice::Auto);
        wanted.tools[0].input = Some(grammar.clone());
        let mut reader = reader(&tokenizer, &wanted);
        assert!(reader.push_text(open("true").as_bytes()));
        assert_eq!(
            takes(&mut reader, &tokenizer, value),
            taken,
            "{grammar:?} {value}"
        );
        if taken {
            // What follows is the block's again.
            assert!(reader.push_text("</｜DSML｜invoke>\n</｜DSML｜tool_calls>".as_bytes()));
            assert_eq!(reader.admitted(), Ok(None));
        }
    }
    // One that cannot be is told.
    let mut wanted = generation(&tools, ToolChoice::Auto);
    wanted.tools[0].input = Some(InputGrammar::Lark("start: nothing".to_owned()));
    let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
    let (_, warnings) = schemas.calls(&wanted).expect("schemas");
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(
        warning.starts_with("tools: the grammar of f is not enforced: "),
        "{warning}"
    );
}

/// The grammar of patches, much as a coding agent sends it.
const PATCH: &str = r#"
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"#;

/// Draws among what is admitted, a token that ends something every other time, until the block is
/// over; its text.
fn drawn(reader: &mut CallReader, tokenizer: &Tokenizer, mut seed: u64) -> String {
    let mut text: Vec<u8> = Vec::new();
    let mut below = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    while let Some(set) = reader.admitted().expect("within the limits") {
        let all = (0..tokenizer.n_vocab() as u32).filter(|token| set.contains(*token));
        let all: Vec<u32> = all.collect();
        let ends = |token: &&u32| {
            let bytes = tokenizer.token_bytes(**token);
            bytes.starts_with(b"<") || bytes.contains(&b'\n')
        };
        let ending: Vec<u32> = all.iter().filter(ends).copied().collect();
        let from = match below(2) == 0 && !ending.is_empty() {
            true => &ending,
            false => &all,
        };
        let token = from[below(from.len())];
        assert!(reader.push(token), "what is admitted can be read");
        text.extend_from_slice(tokenizer.token_bytes(token));
        assert!(text.len() < 100_000, "no end");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn nonsense_written_by_a_tools_own_grammar_follows_it() {
    let tokenizer = tokenizer();
    let parameters = json!({"properties": {"input": {"type": "string"}}, "required": ["input"]});
    let tools = [
        ("patch".to_owned(), parameters.clone()),
        ("plain".to_owned(), parameters),
    ];
    for seed in 1..40 {
        let mut wanted = generation(&tools, ToolChoice::Required(vec!["patch".to_owned()]));
        wanted.tools[0].input = Some(InputGrammar::Lark(PATCH.to_owned()));
        let mut reader = reader(&tokenizer, &wanted);
        assert!(
            reader.push_text(
                "tool_calls>\n<｜DSML｜invoke name=\"patch\">\n<｜DSML｜parameter name=\"input\" \
             string=\"true\">"
                    .as_bytes()
            )
        );
        let text = drawn(&mut reader, &tokenizer, seed << 32 | 0x7f4a_7c15);
        let (patch, _) = text.split_once("</｜DSML｜parameter>").expect("an end");
        let lines: Vec<&str> = patch.trim_end_matches('\n').split('\n').collect();
        assert_eq!(lines.first(), Some(&"*** Begin Patch"), "{patch}");
        assert_eq!(lines.last(), Some(&"*** End Patch"), "{patch}");
        for line in &lines[1..lines.len() - 1] {
            let known = ["*** ", "+", "-", " ", "@@"];
            assert!(
                known.iter().any(|start| line.starts_with(start)),
                "{line:?}"
            );
        }
    }
}

#[test]
fn strict_tools_are_refused_by_their_pointer_and_others_relaxed_with_a_line() {
    let schemas = Schemas::new(&tokenizer()).expect("a vocabulary");
    for (parameters, pointer) in [
        (
            json!({"properties": {"a": {"type": "array", "uniqueItems": true}}}),
            Some("/properties/a/uniqueItems"),
        ),
        (
            json!({"properties": {"a": {"$ref": "#/$defs/n"}},
                   "$defs": {"n": {"type": "integer", "multipleOf": 99_999_999}}}),
            Some("/$defs/n/multipleOf"),
        ),
        (
            json!({"properties": {"a": {"type": "string", "pattern": "(?=x)"}}}),
            Some("/properties/a/pattern"),
        ),
        (
            json!({"properties": {"a": {"type": "string", "format": "iri"}}}),
            Some("/properties/a/format"),
        ),
        (
            json!({"properties": {"a": {"type": "string", "not": {"const": "x"}}}}),
            Some("/properties/a/not"),
        ),
        (
            json!({"properties": {"a": {"anyOf": [false, false]}}, "required": ["a"]}),
            Some("/properties/a/anyOf"),
        ),
        (
            json!({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}),
            Some("/anyOf"),
        ),
        (
            json!({"properties": {"a": {"type": "integer", "minimum": 1}}}),
            None,
        ),
        (
            json!({"properties": {"a": {"type": "string", "format": "ipv6"},
                                  "b": {"type": "string", "format": "uri"},
                                  "c": {"type": "string", "format": "duration"}}}),
            None,
        ),
    ] {
        let tools = [
            ("f".to_owned(), parameters.clone()),
            ("g".to_owned(), json!({})),
        ];
        let mut wanted = generation(&tools, ToolChoice::Auto);
        let (reader, warnings) = schemas.calls(&wanted).expect("relaxed");
        assert!(reader.is_some());
        if let Some(pointer) = pointer {
            assert!(
                warnings.iter().any(|line| line.contains(pointer)),
                "{warnings:?}"
            );
        }
        wanted.tools[0].function["strict"] = json!(true);
        match (schemas.calls(&wanted), pointer) {
            (Ok((_, warnings)), None) => assert_eq!(warnings, Vec::<String>::new()),
            (Err(failure), Some(pointer)) => {
                assert!(failure.message.contains(pointer), "{}", failure.message);
                assert_eq!(failure.param.as_deref(), Some("tools"));
            }
            (found, _) => panic!("{parameters}: {:?}", found.map(|(_, warnings)| warnings)),
        }
    }
}
