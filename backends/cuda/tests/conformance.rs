//! The suite that every backend runs, on the device of this machine if it has one.

mod device;

use ds4_conformance::ops::Tolerance;
use ds4_conformance::{golden, network, ops, steps};
use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_model::{Geometry, Unfused};

use device::{has_device, make};

fn cpu(geometry: &Geometry) -> CpuBackend {
    let options = CpuOptions {
        n_threads: Some(2),
        simd: None,
    };
    CpuBackend::new(geometry, options).expect("a processor")
}

/// Measured on an H200 with the committed models: 8.4e-6.
const GOLDEN_TOLERANCE: f32 = 1e-3;

/// The processor quantises activations to 8 bits where the weights are quantised, and a value that
/// lies at the edge of a step of the cache's rounding may fall on either side.
const MOVED_TOLERANCE: f32 = 5e-2;

#[test]
fn every_op_is_that_of_the_reference() {
    if has_device() {
        ops::every_op(&make, &Tolerance::F32, false);
    }
}

#[test]
fn networks_obey_every_property() {
    if !has_device() {
        return;
    }
    for golden in golden::committed().iter().chain(&golden::official()) {
        network::golden_logits(&make, golden, GOLDEN_TOLERANCE);
    }
    for golden in golden::committed() {
        network::every_property(&make, &golden, Tolerance::F32.logits);
    }
}

#[test]
fn candidates_are_the_largest_logits() {
    if !has_device() {
        return;
    }
    for golden in golden::committed() {
        steps::candidates_are_the_largest_logits(&make, &golden);
    }
}

#[test]
fn a_slot_goes_on_between_device_and_processor() {
    if !has_device() {
        return;
    }
    for golden in golden::committed() {
        network::an_exported_slot_continues_elsewhere(&make, &cpu, &golden, MOVED_TOLERANCE);
        network::an_exported_slot_continues_elsewhere(&cpu, &make, &golden, MOVED_TOLERANCE);
        let unfused = |geometry: &Geometry| Unfused(make(geometry));
        network::an_exported_slot_continues_elsewhere(&make, &unfused, &golden, 0.0);
    }
}
