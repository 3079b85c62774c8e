//! The raw text of tools that have grammars of their own, and how content is ended.

use ds4_server::calls::CallReader;
use ds4_server::generation::{InputGrammar, OutputSchema, ToolChoice};
use ds4_server::schema::Schemas;
use ds4_text::Tokenizer;
use serde_json::{Value, json};

use crate::calls::{generation, open, reader, takes};
use crate::script::tokenizer;

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
fn content_can_be_ended_wherever_it_stands() {
    let tokenizer = tokenizer();
    let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
    let schema = json!({"type": "object", "additionalProperties": false,
        "required": ["n", "s", "l", "o", "e", "p"],
        "properties": {
            "e": {"type": "string", "format": "email"},
            "p": {"type": "string", "pattern": "^[a-z]+-[0-9]{2}$"},
            "n": {"type": "number"},
            "s": {"type": "string", "minLength": 2},
            "l": {"type": "array", "minItems": 2, "items": {"type": "integer", "minimum": 10}},
            "o": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "null"}},
                  "required": ["x", "y"], "additionalProperties": false}}});
    let text = "{\"e\": \"a-b.c@d.ef\", \"p\": \"ab-12\", \"n\": -12.5e3, \"s\": \"a\\u00e9b\", \"l\": [10, 1234, 56], \
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
        assert!(closing.len() < 250, "a long way to the end of {begun}");
        let whole = format!("{begun}{}", tokenizer.decode(&closing).expect("text"));
        let value: Value = serde_json::from_str(&whole).unwrap_or_else(|e| panic!("{e}: {whole}"));
        assert!(
            value["o"]["y"].is_null() && value["o"]["x"].is_i64(),
            "{whole}"
        );
    }
}
