//! Slots that move between a GPU and the processor, and candidates.

use std::sync::Arc;

use ds4_conformance::{golden, network, steps};
use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_model::Geometry;
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
