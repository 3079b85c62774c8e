//! What schemas cost that are small and ask for much: as content and as the argument of a call,
//! compiled and then followed by replies whose tokens are drawn among those admitted.
//!
//!     cargo bench -p ds4-server --bench hostile -- [TOKENS]
//!
//! prints for each what compiling took, the tokens of its replies, what a token took in the median
//! and at most, on the thread that would be the engine's, and what was said where a reply could not
//! go on. The same schemas are sent to a server by `cargo xtask siege --only schemas`.

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
use serde_json::{Value, json};

/// Replies by every schema.
const N_REPLIES: u64 = 3;

/// The vocabulary of the published model, where the shared data is.
fn tokenizer() -> Option<Arc<Tokenizer>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = folder.ancestors().find_map(|folder| {
        std::fs::read_to_string(folder.join("shared/data/tokenizer/tokenizer.json")).ok()
    })?;
    Tokenizer::from_tokenizer_json(&document).ok().map(Arc::new)
}

fn hostile() -> Vec<(&'static str, Value)> {
    let optional = |kind: &str| -> serde_json::Map<String, Value> {
        let each = (0..510).map(|i| (format!("p{i}"), json!({"type": kind})));
        each.collect()
    };
    let alternatives: Vec<Value> = (0..120)
        .map(|i| json!({"type": "object", "properties": {format!("a{i}"): {"type": "integer"}}}))
        .collect();
    let mut nested = json!({"type": "string"});
    for _ in 0..60 {
        nested = json!({"type": "array", "items": nested, "minItems": 50, "maxItems": 100});
    }
    let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
    vec![
        (
            "multipleOf 0.0000007",
            json!({"type": "number", "multipleOf": 0.000_000_7}),
        ),
        (
            "510 optional strings",
            json!({"type": "object", "properties": optional("string")}),
        ),
        (
            "510 optional integers",
            json!({"type": "object", "properties": optional("integer")}),
        ),
        (
            "120 alternatives, 1000 times",
            json!({"type": "array", "minItems": 1000, "items": {"anyOf": alternatives}}),
        ),
        (
            "a pattern that doubles",
            text("^(([a-z])+.)+[A-Z]([a-z])+$"),
        ),
        ("a pattern that repeats", text("(a|b|c|d){1000}{100}")),
        (
            "a million characters",
            json!({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000}),
        ),
        ("60 levels, 50 times", nested),
        ("a pattern that looks back", text("(a|b)*a(a|b){14}c")),
    ]
}

fn generation(schema: &Value, as_call: bool, n_tokens: usize) -> Generation {
    let source = PromptSource::Messages(vec![Message::user("x")]);
    let mut generation = Generation::new(Endpoint::Chat, source);
    generation.thinking.mode = Mode::Chat;
    generation.max_tokens = Some(n_tokens);
    if as_call {
        let parameters = json!({"type": "object", "properties": {"a": schema}, "required": ["a"]});
        generation.tool_choice = ToolChoice::Required(Vec::new());
        generation.tools = vec![Tool {
            name: "f".to_owned(),
            function: json!({"name": "f", "strict": true, "parameters": parameters}),
            input: None,
            deferred: false,
            origin: Value::Null,
        }];
    } else {
        generation.schema = Some(OutputSchema {
            schema: schema.clone(),
            strict: true,
            place: "schema".to_owned(),
        });
    }
    generation
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let n_tokens = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(200);
    let Some(tokenizer) = tokenizer() else {
        println!("skipped: no shared data beside any parent folder");
        return;
    };
    let schemas = Schemas::new(&tokenizer).expect("a vocabulary");
    let turns = Arc::new(Turns::new(0, 0));
    let rules = PromptRules::default();
    let prompter = Prompter::new(Arc::clone(&tokenizer), turns, rules, 1 << 20);
    let eos = tokenizer.protocol().eos;
    println!(
        "{:<38} {:>10} {:>7} {:>10} {:>10}",
        "schema", "compile", "tokens", "token50", "most"
    );
    for (name, schema) in hostile() {
        for as_call in [false, true] {
            let what = if as_call { "argument" } else { "content" };
            let name = format!("{name}, {what}");
            let began = Instant::now();
            let first = generation(&schema, as_call, n_tokens);
            let compile = || {
                let (calls, _) = schemas.calls(&first)?;
                let schema = first.schema.as_ref();
                let schema = schema.map(|schema| schemas.compile(schema)).transpose()?;
                Ok::<_, ds4_server::generation::Failure>((calls, schema.map(|(reader, _)| reader)))
            };
            let refused = compile().err();
            let compiled = began.elapsed();
            if let Some(failure) = refused {
                println!("{name:<38} {compiled:>10.1?}  {:.110}", failure.message);
                continue;
            }
            let mut times: Vec<Duration> = Vec::new();
            let mut errors: Vec<String> = Vec::new();
            for seed in 1..=N_REPLIES {
                let (calls, schema) = compile().expect("as before");
                let prompt = prompter.tokens(&first).expect("a prompt");
                let shared = Arc::clone(&tokenizer);
                let mut reply =
                    ReplyInProgress::new(Arc::new(first.clone()), shared, prompt, schema, calls);
                reply.opening();
                let mut dice = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed);
                while reply.tokens().len() < n_tokens {
                    let began = Instant::now();
                    let constraint = reply.constraint();
                    let mut took = began.elapsed();
                    let allowed = match constraint {
                        Ok(constraint) => constraint.allowed,
                        Err(failure) => {
                            errors.push(failure.message);
                            times.push(took);
                            break;
                        }
                    };
                    let Some(allowed) = allowed else { break };
                    let all = (0..tokenizer.n_vocab() as u32).filter(|t| allowed.contains(*t));
                    let all: Vec<u32> = all.filter(|token| *token != eos).collect();
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    let Some(at) = dice.checked_rem(all.len() as u64) else {
                        break;
                    };
                    let began = Instant::now();
                    let ends = reply.push(all[at as usize], None).ends;
                    took += began.elapsed();
                    times.push(took);
                    if ends {
                        break;
                    }
                }
                reply.finish(FinishReason::Length);
            }
            times.sort_unstable();
            let most = times.last().copied().unwrap_or_default();
            let median = times.get(times.len() / 2).copied().unwrap_or_default();
            println!(
                "{name:<38} {compiled:>10.1?} {:>7} {median:>10.1?} {most:>10.1?}  {}",
                times.len(),
                errors.first().map_or("", String::as_str)
            );
        }
    }
}
