//! A backend that records and replays, on top of the best path of this machine, passes the suite
//! that every backend runs; and what must hold of steps.

use ds4_conformance::ops::{self, Tolerance};
use ds4_conformance::replaying::Replaying;
use ds4_conformance::{golden, network, steps};
use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_model::Geometry;

fn cpu(geometry: &Geometry) -> CpuBackend {
    let options = CpuOptions {
        n_threads: Some(2),
        simd: None,
    };
    CpuBackend::new(geometry, options).expect("the best path is available")
}

fn recorder(geometry: &Geometry) -> Replaying<CpuBackend> {
    Replaying::new(cpu(geometry))
}

#[test]
fn every_op_can_be_recorded() {
    ops::every_op(&recorder, &Tolerance::F32, false);
}

#[test]
fn recorded_networks_obey_every_property() {
    for golden in golden::committed() {
        network::golden_logits(&recorder, &golden, 1e-3);
        network::every_property(&recorder, &golden, 0.0);
    }
}

/// Quantised weights, and activations that are quantised for them.
#[test]
fn the_built_in_model_obeys_every_property() {
    network::every_property(&recorder, &golden::built_in(), 0.0);
}

#[test]
fn candidates_are_the_largest_logits() {
    for golden in golden::committed() {
        steps::candidates_are_the_largest_logits(&cpu, &golden);
        steps::candidates_are_the_largest_logits(&recorder, &golden);
    }
}

#[test]
fn a_replayed_step_calls_no_op() {
    for golden in golden::committed() {
        steps::a_replayed_step_calls_no_op(&cpu, &golden);
    }
}

#[test]
fn a_failed_step_loses_its_own_slots_only() {
    for golden in golden::committed() {
        steps::a_failed_step_loses_its_own_slots_only(&cpu, &golden);
    }
}
