//! A network of the published types: 8-bit products, tiles and fused stages against the kernels that
//! any adapter runs.

use std::sync::{Arc, OnceLock};

use ds4_formats::GgmlType;
use ds4_model::{
    Backend, Batch, Component, Geometry, LayerKind, Network, Outputs, Requirement, Session,
    SessionShape, Unfused, WeightRole,
};
use ds4_wgpu::{Gpu, Weight, WgpuBackend, WgpuOptions};

fn geometry() -> Geometry {
    let layers = vec![
        LayerKind::Sliding,
        LayerKind::Csa,
        LayerKind::Hca,
        LayerKind::Csa,
    ];
    Geometry {
        n_vocab: 300,
        n_embd: 512,
        n_heads: 16,
        head_dim: 512,
        q_rank: 256,
        n_out_groups: 2,
        out_rank: 128,
        window: 32,
        n_index_heads: 8,
        index_dim: 128,
        // No choice that a small error could turn: all experts, and all compressed rows.
        index_top_k: 64,
        n_experts: 6,
        n_experts_used: 6,
        expert_dim: 256,
        n_hash_layers: 1,
        expert_clamp: vec![10.0; layers.len()],
        shared_clamp: vec![10.0; layers.len()],
        max_context: 4096,
        layers,
        ..Geometry::flash()
    }
}

fn type_of(need: &Requirement) -> GgmlType {
    match (need.role, need.component) {
        (WeightRole::Vector, _) => GgmlType::F32,
        (WeightRole::Ids, _) => GgmlType::I32,
        (WeightRole::Experts, _) if need.name.contains("down") => GgmlType::Q2_K,
        (WeightRole::Experts, _) => GgmlType::IQ2_XXS,
        (_, Component::Attention | Component::SharedExperts | Component::Output) => GgmlType::Q8_0,
        _ => GgmlType::F16,
    }
}

/// Logits of a prompt that is fed in `chunks`, on the adapter with these options.
fn logits(options: &WgpuOptions, chunks: &[usize]) -> Option<(Vec<f32>, Arc<Gpu>)> {
    steps(options, chunks).map(|(logits, gpu, _)| (logits, gpu))
}

fn build(gpu: &Arc<Gpu>) -> (WgpuBackend, Network<Weight>) {
    let geometry = geometry();
    let mut backend = WgpuBackend::new(gpu, &geometry);
    let mut seed = 0;
    let network = Network::build(&geometry, &mut |need| {
        seed += 2;
        backend.random_weight(&need, type_of(&need), seed)
    });
    (backend, network.expect("room for a small network"))
}

/// The same, and the stages of a step of one row.
fn steps(options: &WgpuOptions, chunks: &[usize]) -> Option<(Vec<f32>, Arc<Gpu>, usize)> {
    let gpu = match Gpu::open(options) {
        Ok(gpu) => gpu,
        Err(error) => {
            ds4_conformance::golden::skipped(&error.to_string());
            return None;
        }
    };
    let (mut backend, network) = build(&gpu);
    let found = feed(&mut backend, &network, chunks);
    Some((found, gpu, backend.n_stages(1)))
}

/// Logits of all tokens of a prompt that is fed in `chunks`.
fn feed<B: Backend>(backend: &mut B, network: &Network<B::Weight>, chunks: &[usize]) -> Vec<f32> {
    let shape = SessionShape::uniform(1, 256, 160);
    let mut session = Session::open(backend, shape).expect("room for a session");
    let mut found = Vec::new();
    let mut token = 0u32;
    for n in chunks {
        let tokens: Vec<u32> = (token..token + *n as u32).map(|i| i * 31 % 257).collect();
        token += *n as u32;
        let mut batch = Batch::new();
        batch.push(0, &tokens, Outputs::All);
        let outputs = session.step(backend, network, &batch);
        found.extend_from_slice(outputs.expect("the tokens fit"));
    }
    found
}

/// Relative error of the norm, for each row.
fn errors(found: &[f32], expected: &[f32], n_vocab: usize) -> Vec<f32> {
    let norm = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>().sqrt();
    found
        .chunks(n_vocab)
        .zip(expected.chunks(n_vocab))
        .map(|(f, e)| {
            let d: Vec<f32> = f.iter().zip(e).map(|(f, e)| f - e).collect();
            norm(&d) / norm(e)
        })
        .collect()
}

const CHUNKS: [usize; 8] = [20, 3, 1, 1, 8, 97, 2, 1];

fn plain() -> WgpuOptions {
    WgpuOptions {
        allow_processor: true,
        plain: true,
        checked: true,
        ..WgpuOptions::default()
    }
}

/// The logits of the kernels that any adapter runs; `None` where there is no adapter.
fn expected() -> Option<&'static [f32]> {
    static EXPECTED: OnceLock<Option<Vec<f32>>> = OnceLock::new();
    let expected = EXPECTED.get_or_init(|| {
        let (expected, gpu) = logits(&plain(), &CHUNKS)?;
        println!("{}", gpu.capabilities());
        assert!(expected.iter().all(|x| x.is_finite()));
        Some(expected)
    });
    expected.as_deref()
}

/// Asserts that an adapter as which this one is taken follows the plain kernels.
fn follows(options: &WgpuOptions) {
    let Some(expected) = expected() else { return };
    let (found, gpu) = logits(options, &CHUNKS).expect("the same adapter");
    println!("{}", gpu.capabilities());
    let errors = errors(&found, expected, geometry().n_vocab);
    let most = errors.iter().copied().fold(0.0, f32::max);
    println!("relative errors of the rows: {errors:.3?}");
    // Measured with 8-bit activations: 0.042 on lavapipe.
    assert!(most <= 0.08, "relative error {most}");
}

fn fast() -> WgpuOptions {
    WgpuOptions {
        plain: false,
        ..plain()
    }
}

#[test]
fn fast_kernels_follow_the_plain_ones_through_a_quantised_network() {
    follows(&fast());
}

/// The backend's sublayers do what the forward pass says: the same network by the seams' default bodies, op
/// by op on the same kernels.
#[test]
fn sublayers_are_those_of_their_default_bodies() {
    let chunks = [9, 1, 40];
    let Some((found, gpu)) = logits(&fast(), &chunks) else {
        return;
    };
    let (backend, network) = build(&gpu);
    let expected = feed(&mut Unfused(backend), &network, &chunks);
    let errors = errors(&found, &expected, geometry().n_vocab);
    println!("relative errors of the rows: {errors:.4?}");
    let most = errors.iter().copied().fold(0.0, f32::max);
    assert!(most <= 0.03, "relative error {most}");
}

/// Of one row a turn is part of the product before it: other sums of the same numbers, and fewer stages.
#[test]
fn turns_are_the_same_as_part_of_a_product_and_apart() {
    let chunks = [9, 1, 1, 1, 1, 1, 1];
    let stages = |joins_turns| {
        let options = WgpuOptions {
            joins_turns,
            ..fast()
        };
        let (found, _, n_stages) = steps(&options, &chunks)?;
        Some((found, n_stages))
    };
    let (Some((joined, fewer)), Some((apart, more))) = (stages(true), stages(false)) else {
        return;
    };
    let n_layers = geometry().layers.len();
    // After the last sublayer comes no other.
    assert_eq!(more - fewer, 2 * n_layers - 1, "{fewer} and {more} stages");
    let errors = errors(&joined, &apart, geometry().n_vocab);
    println!("{fewer} instead of {more} stages; relative errors {errors:.4?}");
    let most = errors.iter().copied().fold(0.0, f32::max);
    assert!(most <= 0.02, "relative error {most}");
}

/// The same in a process whose software adapter has subgroups of another size; other adapters keep
/// theirs.
fn at_subgroups_of(vector_bits: &str) {
    let program = std::env::current_exe().expect("this program");
    let test = "fast_kernels_follow_the_plain_ones_through_a_quantised_network";
    let status = std::process::Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env("LP_NATIVE_VECTOR_WIDTH", vector_bits)
        .status()
        .expect("it runs");
    assert!(status.success(), "with vectors of {vector_bits} bits");
}

#[test]
fn they_do_so_with_subgroups_of_4() {
    at_subgroups_of("128");
}

#[test]
fn they_do_so_with_subgroups_of_16() {
    at_subgroups_of("512");
}
