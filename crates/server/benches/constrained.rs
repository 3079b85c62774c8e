//! Replies that must follow schemas, written by nobody who means anything: every token is drawn
//! among those admitted. What ends must be valid, however little sense it makes.
//!
//!     cargo bench -p ds4-server --bench constrained -- [N] [OUT.jsonl]
//!
//! composes N schemas (default 200) and prints how many replies ended, and what compiling and every
//! token cost. With OUT.jsonl, every reply is written there beside its schema;
//! `crates/server/tests/sdk/schemas.py OUT.jsonl` has another implementation check them.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_engine::FinishReason;
use ds4_server::generation::{Endpoint, Generation, OutputSchema, PromptSource, Tool, ToolChoice};
use ds4_server::prompt::{PromptRules, Prompter};
use ds4_server::reply::ReplyInProgress;
use ds4_server::schema::Schemas;
use ds4_server::turns::Turns;
use ds4_text::{Message, Mode, Tokenizer};
use serde_json::{Map, Value, json};

/// Tokens of a reply.
const MAX_TOKENS: usize = 300;

/// A small random source that only goes forward.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A schema with at most so many levels below it.
    fn schema(&mut self, depth: usize) -> Value {
        let n_kinds = if depth == 0 { 9 } else { 15 };
        match self.below(n_kinds) {
            0 | 1 => json!({"type": "string"}),
            2 => {
                json!({"type": "string", "minLength": self.below(4), "maxLength": 4 + self.below(20)})
            }
            3 => {
                let patterns = ["^[a-z]+$", "^k[0-9]{2,4}$", "^(a|bc)+$", "^\\d+-\\w$"];
                json!({"type": "string", "pattern": self.one(&patterns)})
            }
            4 => json!({"enum": ["red", "green", "a b", 7, null]}),
            5 => {
                let least = self.below(1000) as i64 - 500;
                json!({"type": "integer", "minimum": least, "maximum": least + self.below(900) as i64})
            }
            6 => json!({"type": ["number", "null"]}),
            7 => json!({"type": "boolean"}),
            8 => json!({"type": "string", "format": self.one(&["date", "uuid", "date-time"])}),
            9 => json!({"type": "array", "items": self.schema(depth - 1),
                        "minItems": self.below(2), "maxItems": 1 + self.below(4)}),
            10 => json!({"type": "array", "items": false, "minItems": 2,
                         "prefixItems": [self.schema(depth - 1), self.schema(0)]}),
            11 => json!({"type": "object", "additionalProperties": self.schema(depth - 1)}),
            12 => json!({"anyOf": [self.schema(depth - 1), {"type": "null"}]}),
            13 => json!({"$ref": format!("#/$defs/{}", self.one(&["tree", "point"]))}),
            _ => self.object(depth),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for i in 0..1 + self.below(5) {
            let name = format!("{}{i}", self.one(&["name", "x", "list of", "größe"]));
            if self.below(2) == 0 {
                required.push(name.clone());
            }
            properties.insert(name, self.schema(depth.saturating_sub(1)));
        }
        json!({"type": "object", "properties": properties, "required": required,
               "additionalProperties": false})
    }

    fn root(&mut self, depth: usize) -> Value {
        let mut root = self.object(depth);
        root["$defs"] = json!({
            "tree": {"type": "object", "properties": {
                "leaf": {"type": "boolean"},
                "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
                "required": ["leaf", "left"], "additionalProperties": false},
            "point": {"type": "object", "properties": {
                "x": {"type": "integer"}, "y": {"type": "integer", "minimum": 0}},
                "required": ["x", "y"], "additionalProperties": false},
        });
        root
    }
}

#[derive(Default)]
struct Costs {
    compile: Vec<Duration>,
    token: Vec<Duration>,
    n_ended: usize,
    n_replies: usize,
}

fn at(times: &mut [Duration], share: f64) -> String {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    let time = times.get((last as f64 * share) as usize).copied();
    format!("{:.1?}", time.unwrap_or_default())
}

/// The vocabulary of the published model, where the shared data is.
fn tokenizer() -> Option<Arc<Tokenizer>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = folder.ancestors().find_map(|folder| {
        std::fs::read_to_string(folder.join("shared/data/tokenizer/tokenizer.json")).ok()
    })?;
    Tokenizer::from_tokenizer_json(&document).ok().map(Arc::new)
}

/// Draws a reply. Every other draw is among tokens that end things.
fn write(
    schemas: &Schemas,
    prompter: &Prompter,
    generation: Generation,
    dice: &mut Dice,
    ends: &[u32],
    costs: &mut Costs,
) -> (Value, bool, bool) {
    let tokenizer = prompter.tokenizer();
    let prompt = prompter.tokens(&generation).expect("a prompt");
    let began = Instant::now();
    let (calls, _) = schemas.calls(&generation).expect("tools");
    let schema = generation.schema.as_ref();
    let schema = schema.map(|schema| schemas.compile(schema).expect("a schema").0);
    costs.compile.push(began.elapsed());
    let eos = tokenizer.protocol().eos;
    let generation = Arc::new(generation);
    let shared = Arc::new(tokenizer.clone());
    let mut reply = ReplyInProgress::new(generation, shared, prompt, schema, calls);
    reply.opening();
    let mut reason = FinishReason::Length;
    while reply.tokens().len() < MAX_TOKENS {
        let began = Instant::now();
        let constraint = reply.constraint().expect("within the limits");
        costs.token.push(began.elapsed());
        let Some(allowed) = constraint.allowed else {
            break;
        };
        let may = |token: &u32| allowed.contains(*token) && !constraint.forbidden.contains(token);
        let some: Vec<u32> = ends.iter().copied().filter(may).collect();
        let token = if may(&eos) && dice.below(2) == 0 {
            eos
        } else if dice.below(2) == 0 && !some.is_empty() {
            *dice.one(&some)
        } else {
            let all: Vec<u32> = (0..tokenizer.n_vocab() as u32).filter(may).collect();
            *dice.one(&all)
        };
        if token == eos {
            reason = FinishReason::Stop;
            break;
        }
        if reply.push(token, None).ends {
            reason = FinishReason::Stop;
            break;
        }
    }
    let ended = reply.finish(reason);
    costs.n_replies += 1;
    let has_ended = reason == FinishReason::Stop;
    costs.n_ended += usize::from(has_ended);
    let call = ended.calls.first().filter(|call| call.complete);
    match call {
        Some(call) => (
            json!({"name": call.name, "arguments": call.arguments}),
            true,
            has_ended,
        ),
        None => (Value::from(ended.content), false, has_ended),
    }
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"));
    let n = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut out = arguments
        .next()
        .map(|path| std::io::BufWriter::new(std::fs::File::create(path).expect("a file")));
    let Some(tokenizer) = tokenizer() else {
        println!("skipped: no shared data beside any parent folder");
        return;
    };
    let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
    let turns = Arc::new(Turns::new(0, 0));
    let prompter = Prompter::new(
        Arc::clone(&tokenizer),
        turns,
        PromptRules::default(),
        1 << 20,
    );
    let ends: Vec<u32> = ["\"", "}", "]", "\"}", "</", "<", "}]", "]}", "\"</", "}</"]
        .iter()
        .filter_map(|text| match tokenizer.encode(text)[..] {
            [token] => Some(token),
            _ => None,
        })
        .chain([tokenizer.protocol().dsml])
        .collect();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    println!(
        "{:<28} {:>7} {:>7} {:>10} {:>10} {:>10} {:>10}",
        "replies", "n", "ended", "compile50", "compile99", "token50", "token99"
    );
    for (name, depth, n_tools) in [
        ("content, flat", 0, 0),
        ("content, nested", 3, 0),
        ("a call, flat, 1 tool", 0, 1),
        ("a call, nested, 1 tool", 3, 1),
        ("a call, flat, 30 tools", 0, 30),
        ("a call, nested, 30 tools", 3, 30),
    ] {
        let mut costs = Costs::default();
        for _ in 0..n {
            let messages = vec![Message::user("x")];
            let source = PromptSource::Messages(messages);
            let mut generation = Generation::new(Endpoint::Chat, source);
            generation.thinking.mode = Mode::Chat;
            generation.max_tokens = Some(MAX_TOKENS);
            let roots: Vec<Value> = (0..n_tools.max(1)).map(|_| dice.root(depth)).collect();
            if n_tools == 0 {
                generation.schema = Some(OutputSchema {
                    schema: roots[0].clone(),
                    strict: true,
                    place: "schema".to_owned(),
                });
            } else {
                generation.tool_choice = ToolChoice::Required(Vec::new());
                generation.parallel_tool_calls = false;
                let tools = roots.iter().enumerate().map(|(i, root)| Tool {
                    name: format!("tool_{i}"),
                    function: json!({"name": format!("tool_{i}"), "parameters": root, "strict": true}),
                    input: None,
                    deferred: false,
                    origin: Value::Null,
                });
                generation.tools = tools.collect();
            }
            let (value, is_call, has_ended) = write(
                &schemas, &prompter, generation, &mut dice, &ends, &mut costs,
            );
            let pair = match (n_tools, is_call) {
                (0, _) => json!({"schema": roots[0], "text": value, "ended": has_ended}),
                (_, true) => {
                    let which = value["name"].as_str().unwrap_or_default();
                    let i: usize = which.trim_start_matches("tool_").parse().expect("a tool");
                    json!({"schema": roots[i], "text": value["arguments"], "ended": true})
                }
                // A call that was cut short is never made.
                _ => continue,
            };
            if let Some(out) = &mut out {
                writeln!(out, "{pair}").expect("written");
            }
        }
        println!(
            "{name:<28} {:>7} {:>6.1}% {:>10} {:>10} {:>10} {:>10}",
            costs.n_replies,
            100.0 * costs.n_ended as f64 / costs.n_replies as f64,
            at(&mut costs.compile, 0.5),
            at(&mut costs.compile, 0.99),
            at(&mut costs.token, 0.5),
            at(&mut costs.token, 0.99)
        );
    }
}
