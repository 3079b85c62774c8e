//! Requests and schemas with accidents: the fuzz targets on a fixed number of cases.

#[path = "../common/exercise.rs"]
mod exercise;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// What is put into texts: values of every type, names that are read, and what is no JSON.
const PIECES: [&str; 40] = [
    "null",
    "true",
    "-1",
    "0.5",
    "1e999",
    "99999999",
    "[]",
    "{}",
    "\"\"",
    "\"a\"",
    "[1,2]",
    "{\"a\":1}",
    "\"\\ud800\"",
    "\"\\u0000\"",
    ",",
    ":",
    "[",
    "}",
    "\"",
    "\\",
    "\u{1F600}",
    "\"type\":",
    "\"role\":",
    "\"content\":",
    "\"messages\":",
    "\"tools\":",
    "\"input\":",
    "\"text\"",
    "\"object\"",
    "\"string\"",
    "\"array\"",
    "\"properties\":",
    "\"items\":",
    "\"required\":",
    "\"$ref\":\"#\"",
    "\"anyOf\":",
    "\"enum\":",
    "\"pattern\":\"^a+$\"",
    "\"minItems\":",
    "\"additionalProperties\":",
];

/// A text with a few accidents.
fn mutant(random: &mut Random, texts: &[&str]) -> String {
    let mut chars: Vec<char> = texts[random.below(texts.len())].chars().collect();
    for _ in 0..1 + random.below(4) {
        let at = random.below(chars.len() + 1);
        let n = random.below(12).min(chars.len() - at);
        let piece: Vec<char> = match random.below(4) {
            0 => Vec::new(),
            1 => {
                let other: Vec<char> = texts[random.below(texts.len())].chars().collect();
                let from = random.below(other.len());
                let n = random.below(other.len() - from + 1);
                other[from..from + n].to_vec()
            }
            _ => PIECES[random.below(PIECES.len())].chars().collect(),
        };
        chars.splice(at..at + n, piece);
    }
    chars.into_iter().collect()
}

#[track_caller]
fn run(name: &str, n_cases: usize, texts: &[&str], exercise: fn(&str)) {
    let mut random = Random(12);
    for text in texts {
        exercise(text);
    }
    for _ in 0..n_cases {
        let text = mutant(&mut random, texts);
        let done = std::panic::catch_unwind(|| exercise(&text));
        assert!(done.is_ok(), "{name}: {text}");
    }
}

const REQUESTS: [&str; 6] = [
    r#"{"model":"m","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"Hi"},{"type":"image_url","image_url":{"url":"x"}}]},{"role":"assistant","content":null,"reasoning_content":"Hm","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},{"role":"tool","tool_call_id":"call_1","content":"ok"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"stream":true,"logprobs":true,"top_logprobs":3,"logit_bias":{"7":-1.5},"stop":["a","b"],"chat_template_kwargs":{"thinking":true}}"#,
    r#"{"prompt":[1,2,3],"suffix":null,"max_tokens":5,"echo":false,"temperature":0.5,"seed":7,"logit_bias":{"1":2}}"#,
    r#"{"prompt":["one"],"structured_outputs":{"json":{"type":"object"}},"stop":"a"}"#,
    r#"{"system":[{"type":"text","text":"x-anthropic-a: b\nHi"}],"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":[{"type":"thinking","thinking":"Hm","signature":"s"},{"type":"tool_use","id":"toolu_1","name":"f","input":{"a":[1,{"b":null}]}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"ok"}],"is_error":true},{"type":"document","source":{"type":"text","data":"d"},"title":"t"}]}],"tools":[{"name":"f","input_schema":{"type":"object"}},{"type":"bash_20250124","name":"bash"}],"tool_choice":{"type":"any"},"thinking":{"type":"enabled","budget_tokens":9},"max_tokens":9}"#,
    r#"{"instructions":"Be brief.","input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]},{"type":"reasoning","summary":[{"type":"summary_text","text":"Hm"}],"encrypted_content":"e"},{"type":"function_call","call_id":"call_1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"call_1","output":[{"type":"input_text","text":"ok"}]},{"type":"local_shell_call","call_id":"call_2","action":{"type":"exec","command":["ls"],"env":{}}},{"type":"local_shell_call_output","call_id":"call_2","output":{"a":1}},{"type":"item_reference","id":"x"}],"tools":[{"type":"namespace","name":"n","tools":[{"type":"function","name":"f"}]},{"type":"custom","name":"c","format":{"type":"grammar","syntax":"lark","definition":"start: /a/"}}],"text":{"format":{"type":"json_schema","name":"a","schema":{"type":"object"}}},"metadata":{"a":"b"},"include":["reasoning.encrypted_content"],"truncation":"auto"}"#,
    r#"{"content":"a text","prompt":"another","tokens":[1,2,3],"with_pieces":true,"action":"reasoning_end","id":"x"}"#,
];

const SCHEMAS: [&str; 6] = [
    r#"{"type":"object","properties":{"a":{"type":"integer","minimum":0,"maximum":9},"b":{"type":"string","enum":["x","y"]}},"required":["a"],"additionalProperties":false}"#,
    r##"{"$defs":{"n":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]},"v":{"type":"number"}},"required":["v"]}},"$ref":"#/$defs/n"}"##,
    r#"{"type":"array","items":{"type":"string","pattern":"^[a-z]{2,5}$"},"minItems":1,"maxItems":4}"#,
    r#"{"anyOf":[{"type":"string","minLength":2,"maxLength":9},{"type":"array","prefixItems":[{"type":"boolean"},{"const":7}],"items":false}]}"#,
    r#"{"type":"object","additionalProperties":{"type":"string","format":"date-time"},"maxProperties":3}"#,
    r#"{"allOf":[{"type":"object","properties":{"a":{"type":"integer"}}},{"required":["a"]}],"title":"t","default":{}}"#,
];

#[test]
fn requests_with_accidents_are_read_or_refused_and_take_what_they_are_worth() {
    run("request", 4000, &REQUESTS, exercise::request);
}

#[test]
fn schemas_with_accidents_compile_or_are_refused() {
    run("schema", 250, &SCHEMAS, exercise::schema);
}
