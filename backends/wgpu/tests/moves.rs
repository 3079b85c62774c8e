//! Slots that move between a GPU and the processor, and the same words on both.

use std::sync::Arc;

use ds4_conformance::{golden, network, steps};
use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_model::{CacheRounding, Geometry};
use ds4_wgpu::{Gpu, WgpuBackend, WgpuOptions};

fn open() -> Option<Arc<Gpu>> {
    let options = WgpuOptions {
        allow_processor: true,
        ..WgpuOptions::default()
    };
    match Gpu::open(&options) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            golden::skipped(&error.to_string());
            None
        }
    }
}

fn make(gpu: &Arc<Gpu>) -> impl Fn(&Geometry) -> WgpuBackend {
    let gpu = Arc::clone(gpu);
    move |geometry| WgpuBackend::new(&gpu, geometry)
}

fn cpu(geometry: &Geometry) -> CpuBackend {
    let options = CpuOptions {
        n_threads: Some(2),
        simd: None,
    };
    CpuBackend::new(geometry, options).expect("a processor")
}

/// A value at the edge of a step of the cache's rounding may fall on either side.
const MOVED_TOLERANCE: f32 = 5e-2;

#[test]
fn a_slot_goes_on_between_gpu_and_processor() {
    let Some(gpu) = open() else { return };
    let golden = &golden::committed()[0];
    network::an_exported_slot_continues_elsewhere(&make(&gpu), &cpu, golden, MOVED_TOLERANCE);
    network::an_exported_slot_continues_elsewhere(&cpu, &make(&gpu), golden, MOVED_TOLERANCE);
}

#[test]
fn candidates_are_the_largest_logits() {
    let Some(gpu) = open() else { return };
    for golden in golden::committed() {
        steps::candidates_are_the_largest_logits(&make(&gpu), &golden);
    }
}

/// The first tokens that the built-in model says greedily after a prompt, and how far its first choice
/// was ahead of its second when that was closest.
fn greedy(model: &mut network::Model<impl ds4_model::Backend>, prompt: &[u32]) -> (Vec<u32>, f32) {
    let n_vocab = model.n_vocab();
    let mut logits = model.feed(0, prompt, &[usize::MAX]);
    let mut said = Vec::new();
    let mut closest = f32::INFINITY;
    for _ in 0..24 {
        let last = &logits[logits.len() - n_vocab..];
        let token = network::argmax(last);
        let others = last.iter().enumerate().filter(|(i, _)| *i != token);
        let second = others.map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max);
        closest = closest.min(last[token] - second);
        said.push(token as u32);
        logits = model.feed(0, &[token as u32], &[1]);
    }
    (said, closest)
}

#[test]
fn the_built_in_model_says_the_same_as_on_the_processor() {
    let Some(gpu) = open() else { return };
    let built_in = golden::built_in();
    let prompt = &built_in.tokens[..20];
    let shape = network::test_shape(64, CacheRounding::Official);
    let mut on_cpu = network::Model::open(&built_in.gguf, &cpu, shape.clone());
    let mut on_gpu = network::Model::open(&built_in.gguf, &make(&gpu), shape);
    let (expected, closest) = greedy(&mut on_cpu, prompt);
    let (found, _) = greedy(&mut on_gpu, prompt);
    println!("closest choice: {closest}; {expected:?}");
    assert_eq!(found, expected);
}
