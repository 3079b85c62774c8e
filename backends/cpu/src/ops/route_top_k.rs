use ds4_model::{Routes, RowsImage};

use super::real;
use super::route_hash::mixing_weights;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn route_top_k(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    bias: &Weight,
    scores: &Buffer,
    routes: &mut Routes<Buffer>,
) {
    let k = routes.experts.width();
    for r in real(rows) {
        let biased: Vec<f32> = scores
            .row(r)
            .iter()
            .zip(bias.vector())
            .map(|(s, b)| s + b)
            .collect();
        let out = routes.experts.index(0, r);
        for (out, e) in routes.experts.ids_mut()[out]
            .iter_mut()
            .zip(largest(&biased, k))
        {
            *out = e;
        }
        mixing_weights(cpu.geometry.expert_scale, scores.row(r), routes, r);
    }
}

/// Indices of the `k` largest values, largest first; of equal ones the lowest index first.
fn largest(values: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let by_value = |a: &u32, b: &u32| {
        values[*b as usize]
            .total_cmp(&values[*a as usize])
            .then(a.cmp(b))
    };
    if k < order.len() {
        order.select_nth_unstable_by(k, by_value);
        order.truncate(k);
    }
    order.sort_unstable_by(by_value);
    order
}
