//! The suite that every backend runs, on the adapters of this machine.

use std::sync::Arc;

use ds4_conformance::ops::Tolerance;
use ds4_conformance::{golden, network, ops};
use ds4_model::Geometry;
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

#[test]
fn networks_obey_every_property() {
    let Some(gpu) = open(options()) else { return };
    for golden in golden::committed() {
        network::golden_logits(&make(&gpu), &golden, 1e-3);
    }
    for golden in golden::committed() {
        network::every_property(&make(&gpu), &golden, 1e-3);
    }
}
