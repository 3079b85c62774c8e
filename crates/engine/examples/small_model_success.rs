//! Measures how often a model does what a file of prompts expects, greedily,
//! through the whole engine.
//!
//! ```text
//! python3 models/train/eval_prompts.py PROMPTS.jsonl
//! cargo run --release -p ds4-engine --example small_model_success -- MODEL.gguf PROMPTS.jsonl [-v] [--cuda] [--replies OUT]
//! ```
//!
//! `--cuda` runs it on an NVIDIA device instead of the processor; `--replies` writes what was said, a
//! line for each prompt in order, so that two runs can be compared.
//!
//! Every line of the file has `skill`, `thinking`, `prompt` (rendered text),
//! `messages` (for the declared tools) and `check`: `contains`, strings of the
//! answer after the reasoning, or `tool_calls`, names and arguments. A reply
//! counts only when it ends by itself, its calls are well-formed, and, in
//! thinking mode, it has reasoning.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use ds4_engine::{
    BackendKind, Engine, Event, FinishReason, OpenOptions, Request, SamplingOptions, Scheduler,
    SequenceId,
};
use ds4_text::{Detokenizer, EndReason, Reply, ReplyParser, Start, Tokenizer, ToolSchemas};
use serde_json::Value;

const MAX_REPLY_TOKENS: usize = 400;
const N_SLOTS: usize = 8;

struct Case {
    json: Value,
    tokens: Vec<u32>,
    reply: Vec<u32>,
}

impl Case {
    fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or("")
    }

    fn thinking(&self) -> bool {
        self.json["thinking"] == true
    }

    fn parse(&self, tokenizer: &Tokenizer, end: EndReason) -> Reply {
        let tools = self.json["messages"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|message| message["tools"].as_array())
            .flatten()
            .map(|tool| tool.get("function").unwrap_or(tool))
            .map(|f| {
                (
                    f["name"].as_str().unwrap_or("").to_owned(),
                    f["parameters"].clone(),
                )
            })
            .collect::<ToolSchemas>();
        let start = if self.thinking() {
            Start::Reasoning
        } else {
            Start::Content
        };
        let mut parser = ReplyParser::new(start, tools);
        let mut detokenizer = Detokenizer::new(tokenizer);
        for id in &self.reply {
            parser.push(&detokenizer.push(*id));
        }
        parser.push(&detokenizer.finish());
        parser.finish(end).1
    }

    fn is_right(&self, reply: &Reply) -> bool {
        if reply.malformed.is_some() || (self.thinking() && reply.reasoning.trim().is_empty()) {
            return false;
        }
        let check = &self.json["check"];
        if let Some(strings) = check["contains"].as_array() {
            return strings
                .iter()
                .all(|s| reply.content.contains(s.as_str().unwrap_or("")));
        }
        let expected = check["tool_calls"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        expected.len() == reply.tool_calls.len()
            && expected.iter().zip(&reply.tool_calls).all(|(e, call)| {
                call.complete
                    && e["name"] == call.name.as_str()
                    && serde_json::from_str::<Value>(&call.arguments).ok().as_ref()
                        == Some(&e["arguments"])
            })
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(model), Some(prompts)) = (args.first(), args.get(1)) else {
        eprintln!(
            "usage: small_model_success MODEL.gguf PROMPTS.jsonl [-v] [--cuda] [--replies OUT]"
        );
        return ExitCode::from(2);
    };
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let out = args.iter().position(|a| a == "--replies");
    let out = out.and_then(|at| args.get(at + 1)).map(String::as_str);
    match run(model, prompts, has("-v"), has("--cuda"), out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    model: &str,
    prompts: &str,
    verbose: bool,
    cuda: bool,
    out: Option<&str>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut options = OpenOptions::new(model);
    if cuda {
        options.backend = BackendKind::Cuda;
    }
    options.n_slots = N_SLOTS;
    options.context = Some(8192);
    let engine = Engine::open(&options, &mut |_| {})?;
    let tokenizer = engine
        .tokenizer()
        .ok_or("the file has no tokenizer")?
        .clone();
    let mut scheduler = Scheduler::new(engine);
    let eos = tokenizer.protocol().eos;

    let mut waiting = Vec::new();
    for line in std::fs::read_to_string(prompts)?.lines().rev() {
        let json: Value = serde_json::from_str(line)?;
        let tokens = tokenizer.encode(json["prompt"].as_str().ok_or("a line has no prompt")?);
        waiting.push(Case {
            json,
            tokens,
            reply: Vec::new(),
        });
    }
    let mut running: HashMap<SequenceId, Case> = HashMap::new();
    let mut skills: Vec<(String, bool, usize, usize)> = Vec::new();
    let mut said: BTreeMap<u64, String> = BTreeMap::new();
    while !waiting.is_empty() || !scheduler.is_idle() {
        while running.len() < N_SLOTS
            && let Some(case) = waiting.pop()
        {
            let id = scheduler.submit(Request {
                tokens: case.tokens.clone(),
                sampling: SamplingOptions::greedy(),
                max_tokens: MAX_REPLY_TOKENS,
                stop_tokens: vec![eos],
                ..Request::default()
            })?;
            running.insert(id, case);
        }
        for event in scheduler.tick()? {
            match event {
                Event::Prefill { .. } => {}
                Event::Token { id, token, .. } => {
                    running.get_mut(&id).expect("submitted").reply.push(token);
                }
                Event::Finished { id, reason, .. } => {
                    let case = running.remove(&id).expect("submitted");
                    let stopped = reason == FinishReason::Stop;
                    let end = if stopped {
                        EndReason::Stop
                    } else {
                        EndReason::Length
                    };
                    let reply = case.parse(&tokenizer, end);
                    let id = case.json["id"].as_u64().unwrap_or(0);
                    said.insert(id, tokenizer.decode(&case.reply)?);
                    let right = stopped && case.is_right(&reply);
                    count(&mut skills, &case, right);
                    if verbose && !right {
                        println!(
                            "{}: {:?}\n  expected {}",
                            case.text("skill"),
                            reply,
                            case.json["check"]
                        );
                    }
                }
            }
        }
    }
    if let Some(out) = out {
        let lines = said
            .iter()
            .map(|(id, text)| format!("{}\n", serde_json::json!({"id": id, "reply": text})));
        std::fs::write(out, lines.collect::<String>())?;
    }
    println!("| skill | thinking | right | of |\n|---|---|---|---|");
    for (skill, thinking, right, of) in skills {
        println!(
            "| {skill} | {} | {right} | {of} |",
            if thinking { "yes" } else { "no" }
        );
    }
    Ok(())
}

fn count(skills: &mut Vec<(String, bool, usize, usize)>, case: &Case, right: bool) {
    let key = (case.text("skill"), case.thinking());
    let entry = match skills.iter_mut().find(|s| (s.0.as_str(), s.1) == key) {
        Some(entry) => entry,
        None => {
            skills.push((key.0.to_owned(), key.1, 0, 0));
            skills.last_mut().expect("just pushed")
        }
    };
    entry.2 += usize::from(right);
    entry.3 += 1;
}
