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
    for r in real(rows) {
        let out = routes.experts.index(0, r);
        choose(
            scores.row(r),
            bias.vector(),
            &mut routes.experts.ids_mut()[out],
        );
        mixing_weights(cpu.geometry.expert_scale, scores.row(r), routes, r);
    }
}

/// Writes the indices of the largest sums, as many as fit and there are, largest first; of equal
/// sums the lowest index first. An insertion sort that keeps only what fits.
fn choose(scores: &[f32], bias: &[f32], out: &mut [u32]) {
    let sum = |e: u32| scores[e as usize] + bias[e as usize];
    let k = out.len();
    let mut n = 0;
    for e in 0..scores.len() as u32 {
        let value = sum(e);
        let is_larger = |other: u32| value.total_cmp(&sum(other)).is_gt();
        if n == k && !is_larger(out[k - 1]) {
            continue;
        }
        let mut at = n.min(k - 1);
        while at > 0 && is_larger(out[at - 1]) {
            out[at] = out[at - 1];
            at -= 1;
        }
        out[at] = e;
        n = (n + 1).min(k);
    }
}
