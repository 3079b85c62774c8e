//! The built-in model says the same wherever it runs. `DS4_TEST_PROMPTS` names another file of prompts, such
//! as all that `models/train/eval_prompts.py` writes.

use std::collections::HashMap;
use std::path::PathBuf;

use ds4_conformance::golden::{project_root, skipped};
use ds4_engine::{
    BackendKind, Engine, Event, LoadProgress, OpenError, OpenOptions, Request, SamplingOptions,
    Scheduler,
};
use serde_json::Value;

const MAX_REPLY_TOKENS: usize = 400;
const N_SLOTS: usize = 4;
/// Longest prompt, in characters, that the scalar reference is asked.
const SHORT: usize = 120;
/// Prompts that it is asked.
const N_SHORT: usize = 4;
/// Two tokens whose log-probabilities are closer than this are equally likely as far as the processor can
/// tell: its activations have 8 bits. Measured at the places where replies part, 7 of 1,011: 0.11 at most.
const TIE: f32 = 0.25;
/// Share of the replies that may differ, from such a place on.
const MOST_TIES: f64 = 0.02;

struct Prompt {
    skill: String,
    text: String,
}

fn prompts() -> Vec<Prompt> {
    let path = std::env::var_os("DS4_TEST_PROMPTS").map_or_else(
        || project_root().join("testdata/greedy/prompts.jsonl"),
        PathBuf::from,
    );
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
    Engine::open(&options, &mut |progress| {
        if let LoadProgress::Chosen { what, .. } = progress {
            println!("{what}");
        }
    })
}

/// A token, and how much likelier it was than the next.
type Said = (u32, f32);

/// Greedy replies, several at a time.
fn replies(engine: Engine, prompts: &[Prompt]) -> Vec<Vec<Said>> {
    let tokenizer = engine.tokenizer().expect("the model has one").clone();
    let mut scheduler = Scheduler::new(engine);
    let mut waiting = prompts.iter().enumerate();
    let mut running = HashMap::new();
    let mut said = vec![Vec::new(); prompts.len()];
    loop {
        while running.len() < N_SLOTS
            && let Some((at, prompt)) = waiting.next()
        {
            let request = Request {
                tokens: tokenizer.encode(&prompt.text),
                sampling: SamplingOptions::greedy(),
                max_tokens: MAX_REPLY_TOKENS,
                stop_tokens: vec![tokenizer.protocol().eos],
                n_logprobs: Some(2),
                ..Request::default()
            };
            running.insert(scheduler.submit(request).expect("room"), at);
        }
        if running.is_empty() {
            return said;
        }
        for event in scheduler.tick().expect("no step fails") {
            match event {
                Event::Token {
                    id,
                    token,
                    logprobs,
                } => {
                    let top = logprobs.expect("asked for").top;
                    said[running[&id]].push((token, top[0].1 - top[1].1));
                }
                Event::Finished { id, .. } => drop(running.remove(&id)),
                Event::Prefill { .. } => {}
            }
        }
    }
}

/// Asserts that replies are those of the processor, but for a few that part where it could not tell two
/// tokens apart.
fn assert_same(prompts: &[Prompt], found: &[Vec<Said>], cpu: &[Vec<Said>]) {
    let mut n_other = 0;
    for ((prompt, found), cpu) in prompts.iter().zip(found).zip(cpu) {
        assert!(!found.is_empty(), "{}", prompt.text);
        let same = found.iter().zip(cpu).take_while(|(a, b)| a.0 == b.0);
        let n_same = same.count();
        if n_same == found.len() && n_same == cpu.len() {
            continue;
        }
        n_other += 1;
        // Where one has ended the other goes on; the end of a reply is not among its tokens.
        let gap = [found, cpu].map(|said| said.get(n_same).map(|(_, gap)| *gap));
        println!(
            "{}: {} and {} tokens part after {n_same}; gaps there {gap:?}",
            prompt.skill,
            found.len(),
            cpu.len()
        );
        let least = gap.into_iter().flatten().fold(f32::INFINITY, f32::min);
        assert!(least <= TIE, "{:?}: not a tie: {gap:?}", prompt.text);
    }
    println!("{} of {} alike", prompts.len() - n_other, prompts.len());
    let most = (MOST_TIES * prompts.len() as f64).ceil() as usize;
    assert!(
        n_other <= most,
        "{n_other} replies differ, at most {most} may"
    );
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
        Err(OpenError::NoDevice(error)) => return skipped(&error.to_string()),
        Err(error) => panic!("{error}"),
    };
    let prompts = prompts();
    let cpu = open(BackendKind::Cpu).expect("it opens");
    let expected = replies(cpu, &prompts);
    assert_same(&prompts, &replies(device, &prompts), &expected);
}

/// Prompts that a GPU is asked which the processor plays: on two cores a token takes it a tenth of a second.
#[cfg(feature = "wgpu")]
const N_PLAYED: usize = 3;

/// `DS4_TEST_PROMPTS` has it asked all of them, of whichever kind it is.
#[cfg(feature = "wgpu")]
#[test]
fn the_built_in_model_says_the_same_on_a_gpu_through_metal_or_vulkan() {
    let device = match open(BackendKind::Wgpu) {
        Ok(engine) => engine,
        Err(OpenError::NoGpu(error)) => return skipped(&error),
        Err(error) => panic!("{error}"),
    };
    let mut prompts = prompts();
    if device.numerics().contains("llvmpipe") && std::env::var_os("DS4_TEST_PROMPTS").is_none() {
        prompts.retain(|prompt| prompt.text.chars().count() <= SHORT);
        prompts.truncate(N_PLAYED);
        assert_eq!(prompts.len(), N_PLAYED);
    }
    let cpu = open(BackendKind::Cpu).expect("it opens");
    let expected = replies(cpu, &prompts);
    assert_same(&prompts, &replies(device, &prompts), &expected);
}
