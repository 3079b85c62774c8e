//! The scalar reference against independent implementations and its own rules.

use ds4_conformance::ops::Tolerance;
use ds4_conformance::{golden, network};
use ds4_model::{Geometry, Reference, Unfused};

fn reference(geometry: &Geometry) -> Reference {
    Reference::new(geometry)
}

/// Measured: 9.5e-6 against `transformers` on the committed models, 1.5e-5
/// against the publisher's code.
const GOLDEN_TOLERANCE: f32 = 1e-3;

#[test]
fn committed_golden_models_give_the_logits_of_transformers() {
    for golden in golden::committed() {
        network::golden_logits(&reference, &golden, GOLDEN_TOLERANCE);
    }
}

#[test]
fn the_publishers_logits_are_reproduced() {
    if let Some(golden) = golden::official() {
        network::golden_logits(&reference, &golden, GOLDEN_TOLERANCE);
    }
}

#[test]
fn chunks_batches_forks_rewinds_and_moves_do_not_change_a_bit() {
    // Models whose rows can be cache-rounded: blocks of 64 before the rotated
    // channels.
    for golden in golden::committed() {
        network::every_property(&reference, &golden, 0.0);
        network::every_property(&|g| Unfused(reference(g)), &golden, 0.0);
    }
}

#[test]
fn every_fused_op_of_the_reference_equals_its_parts() {
    ds4_conformance::ops::every_op(&reference, &Tolerance::F32, false);
}
