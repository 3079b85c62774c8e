//! The suite that every backend runs, for each set of instructions that this machine has.

use ds4_conformance::ops::Tolerance;
use ds4_conformance::{golden, network, ops};
use ds4_cpu::{CpuBackend, CpuOptions, SimdPath};
use ds4_model::Geometry;

/// Two threads are enough to see what threads can break; more only compete with other tests.
fn make(simd: SimdPath) -> impl Fn(&Geometry) -> CpuBackend {
    move |geometry| {
        let options = CpuOptions {
            n_threads: Some(2),
            simd: Some(simd),
        };
        CpuBackend::new(geometry, options).expect("an available path")
    }
}

fn is_available(simd: SimdPath) -> bool {
    let available = simd.is_available();
    if !available {
        golden::skipped(&format!("{simd}, which this machine does not have"));
    }
    available
}

fn every_op(simd: SimdPath) {
    if is_available(simd) {
        ops::every_op(&make(simd), &Tolerance::F32, false);
    }
}

const GOLDEN_TOLERANCE: f32 = 1e-3;

fn networks(simd: SimdPath) {
    if !is_available(simd) {
        return;
    }
    for golden in golden::committed().iter().chain(&golden::official()) {
        network::golden_logits(&make(simd), golden, GOLDEN_TOLERANCE);
    }
    for golden in golden::committed() {
        network::every_property(&make(simd), &golden, 0.0);
    }
}

#[test]
fn every_op_of_the_scalar_path_is_that_of_the_reference() {
    every_op(SimdPath::Scalar);
}

#[test]
fn every_op_of_the_avx2_path_is_that_of_the_reference() {
    every_op(SimdPath::Avx2);
}

#[test]
fn every_op_of_the_avx512_path_is_that_of_the_reference() {
    every_op(SimdPath::Avx512);
}

#[test]
fn every_op_of_the_neon_path_is_that_of_the_reference() {
    every_op(SimdPath::Neon);
}

#[test]
fn networks_on_the_scalar_path_obey_every_property() {
    networks(SimdPath::Scalar);
}

#[test]
fn networks_on_the_avx2_path_obey_every_property() {
    networks(SimdPath::Avx2);
}

#[test]
fn networks_on_the_avx512_path_obey_every_property() {
    networks(SimdPath::Avx512);
}

#[test]
fn networks_on_the_neon_path_obey_every_property() {
    networks(SimdPath::Neon);
}
