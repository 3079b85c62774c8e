//! The built-in model says the same wherever it runs.

use std::path::PathBuf;

use ds4_conformance::golden::project_root;
use ds4_engine::{
    BackendKind, Engine, Event, OpenError, OpenOptions, Request, SamplingOptions, Scheduler,
};
use serde_json::Value;

const MAX_REPLY_TOKENS: usize = 400;
const N_SLOTS: usize = 4;
/// Longest prompt, in characters, that the scalar reference is asked.
const SHORT: usize = 120;
/// Prompts that it is asked.
const N_SHORT: usize = 4;

struct Prompt {
    skill: String,
    text: String,
}

fn prompts() -> Vec<Prompt> {
    let path = project_root().join("testdata/greedy/prompts.jsonl");
    let text = std::fs::read_to_string(path).expect("the prompts are in the repository");
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| line[key].as_str().expect("a string").to_owned();
        Prompt {
            skill: text("skill"),
            text: text("prompt"),
        }
    });
    lines.collect()
}

fn open(backend: BackendKind) -> Result<Engine, OpenError> {
    let model: PathBuf = project_root().join("models/ds4-small-q8_0.gguf");
    let mut options = OpenOptions::new(model);
    options.backend = backend;
    options.n_slots = N_SLOTS;
    options.context = Some(4096);
    options.kernel_cache = Some(std::env::temp_dir().join("ds4-cuda-tests"));
    Engine::open(&options, &mut |_| {})
}

/// Greedy replies, several at a time.
fn replies(engine: Engine, prompts: &[Prompt]) -> Vec<String> {
    let tokenizer = engine.tokenizer().expect("the model has one").clone();
    let mut scheduler = Scheduler::new(engine);
    let ids: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let request = Request {
                tokens: tokenizer.encode(&prompt.text),
                sampling: SamplingOptions::greedy(),
                max_tokens: MAX_REPLY_TOKENS,
                stop_tokens: vec![tokenizer.protocol().eos],
                ..Request::default()
            };
            scheduler.submit(request).expect("room")
        })
        .collect();
    let mut said = vec![Vec::new(); prompts.len()];
    while !scheduler.is_idle() {
        for event in scheduler.tick().expect("no step fails") {
            if let Event::Token { id, token, .. } = event {
                let at = ids.iter().position(|other| *other == id);
                said[at.expect("submitted")].push(token);
            }
        }
    }
    let text = |tokens: &Vec<u32>| tokenizer.decode(tokens).expect("tokens of the vocabulary");
    said.iter().map(text).collect()
}

fn assert_same(prompts: &[Prompt], found: &[String], expected: &[String]) {
    let mut n_other = 0;
    for ((prompt, found), expected) in prompts.iter().zip(found).zip(expected) {
        if found != expected {
            n_other += 1;
            println!(
                "{}: {:?}\n  {found:?}\n  expected {expected:?}",
                prompt.skill, prompt.text
            );
        }
    }
    println!("{} of {} alike", prompts.len() - n_other, prompts.len());
    assert_eq!(n_other, 0, "replies differ");
    assert!(found.iter().all(|reply| !reply.is_empty()));
}

#[test]
fn the_built_in_model_says_the_same_on_the_reference() {
    let mut short = prompts();
    short.retain(|prompt| prompt.text.chars().count() <= SHORT);
    short.truncate(N_SHORT);
    assert_eq!(short.len(), N_SHORT);
    let on = |backend| replies(open(backend).expect("it opens"), &short);
    assert_same(&short, &on(BackendKind::Reference), &on(BackendKind::Cpu));
}

#[test]
fn the_built_in_model_says_the_same_on_an_nvidia_device() {
    let device = match open(BackendKind::Cuda) {
        Ok(engine) => engine,
        Err(OpenError::NoDevice(error)) => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    let prompts = prompts();
    let cpu = open(BackendKind::Cpu).expect("it opens");
    let expected = replies(cpu, &prompts);
    assert_same(&prompts, &replies(device, &prompts), &expected);
}
