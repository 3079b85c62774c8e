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
            println!("skipped: {error}");
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
    for golden in golden::committed() {
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
            println!("{} {chunks:?} first rows {:?}", golden.name, &rows[..24]);
            rows.sort_by(f32::total_cmp);
            println!(
                "median {} 90% {} max {}",
                rows[rows.len() / 2],
                rows[rows.len() * 9 / 10],
                rows[rows.len() - 1]
            );
        }
    }
}
