//! The suite that every backend runs, on the adapters of this machine.

use std::sync::Arc;

use ds4_conformance::ops::Tolerance;
use ds4_conformance::{golden, network, ops};
use ds4_model::{CacheRounding, Geometry, Reference};
use ds4_wgpu::{Gpu, WgpuBackend, WgpuOptions};

fn open(options: WgpuOptions) -> Option<Arc<Gpu>> {
    match Gpu::open(&options) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            ds4_conformance::golden::skipped(&error.to_string());
            None
        }
    }
}

fn options() -> WgpuOptions {
    WgpuOptions {
        allow_processor: true,
        checked: true,
        ..WgpuOptions::default()
    }
}

fn make(gpu: &Arc<Gpu>) -> impl Fn(&Geometry) -> WgpuBackend {
    let gpu = Arc::clone(gpu);
    move |geometry| WgpuBackend::new(&gpu, geometry)
}

#[test]
fn every_op_is_that_of_the_reference() {
    if let Some(gpu) = open(options()) {
        ops::every_op(&make(&gpu), &Tolerance::HALF, false);
    }
}

/// Networks as small as these stay in f32 where there are matrices: they are compared to the last digits.
#[test]
fn networks_have_those_logits_where_there_are_matrices() {
    for size in [16, 8] {
        let played = WgpuOptions {
            played_matrices: Some(size),
            ..options()
        };
        let Some(gpu) = open(played) else { return };
        let golden = &golden::committed()[0];
        network::golden_logits(&make(&gpu), golden, 1e-3);
    }
}

/// Without cache rounding, where a last bit that differs stays one.
#[test]
fn networks_have_the_logits_of_independent_implementations() {
    let Some(gpu) = open(options()) else { return };
    for golden in golden::committed() {
        network::golden_logits(&make(&gpu), &golden, 1e-3);
    }
}

#[test]
fn rounded_networks_follow_the_reference() {
    let Some(gpu) = open(options()) else { return };
    for golden in golden::committed().into_iter().take(1) {
        let shape = network::test_shape(golden.tokens.len(), CacheRounding::Official);
        let mut reference = network::Model::open(&golden.gguf, &Reference::new, shape.clone());
        let n_vocab = reference.n_vocab();
        let expected = reference.feed(0, &golden.tokens, &[usize::MAX]);
        let mut model = network::Model::open(&golden.gguf, &make(&gpu), shape);
        for chunks in [&[usize::MAX][..], &[7], &[1]] {
            model.session.clear(0);
            let found = model.feed(0, &golden.tokens, chunks);
            let mut rows: Vec<f32> = found
                .chunks(n_vocab)
                .zip(expected.chunks(n_vocab))
                .map(|(f, e)| network::difference(f, e, n_vocab, 0.0).max_abs)
                .collect();
            // A last bit that differs moves a value across a rounding boundary sooner or later, and
            // from there on only statistics can be compared.
            let what = format!("{} in chunks of {chunks:?}", golden.name);
            let first = rows[..8].iter().copied().fold(0.0, f32::max);
            assert!(first <= 1e-4, "{what}: the first rows differ by {first}");
            rows.sort_by(f32::total_cmp);
            let median = rows[rows.len() / 2];
            assert!(
                median <= 2e-2,
                "{what}: half of the rows differ by {median} and more"
            );
            println!("{what}: median difference {median:.1e}");
        }
    }
}
