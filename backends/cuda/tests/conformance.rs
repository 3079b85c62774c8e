//! The suite that every backend runs, on the device of this machine if it has one.

use ds4_conformance::ops::Tolerance;
use ds4_conformance::{golden, network, ops};
use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_cuda::{CudaBackend, CudaOptions};
use ds4_model::{Geometry, Unfused};

/// Compiled kernels are kept between the tests of one run.
fn options() -> CudaOptions {
    let cache = std::env::temp_dir().join("ds4-cuda-conformance");
    CudaOptions {
        cache: Some(cache),
        ..CudaOptions::default()
    }
}

fn make(geometry: &Geometry) -> CudaBackend {
    CudaBackend::new(geometry, options()).expect("a device")
}

fn cpu(geometry: &Geometry) -> CpuBackend {
    let options = CpuOptions {
        n_threads: Some(2),
        simd: None,
    };
    CpuBackend::new(geometry, options).expect("a processor")
}

fn has_device() -> bool {
    match CudaBackend::new(&Geometry::flash(), options()) {
        Ok(backend) => {
            let facts = backend.device();
            println!("{}, sm_{}{}", facts.name, facts.major, facts.minor);
            true
        }
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

/// Measured on an H200 against the committed models: 2.6e-5.
const GOLDEN_TOLERANCE: f32 = 1e-3;

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

/// The processor quantises activations to 8 bits where the weights are quantised, and a value that
/// lies at the edge of a step of the cache's rounding may fall on either side.
const MOVED_TOLERANCE: f32 = 5e-2;
