use ds4_model::{Routes, RowsImage};

use super::real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn route_hash(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    ids: &Weight,
    scores: &Buffer,
    routes: &mut Routes<Buffer>,
) {
    for r in real(rows) {
        let out = routes.experts.index(0, r);
        let chosen = ids.ids(rows.token[r] as usize);
        for (out, id) in routes.experts.ids_mut()[out].iter_mut().zip(chosen) {
            *out = id;
        }
        mixing_weights(cpu.geometry.expert_scale, scores.row(r), routes, r);
    }
}

/// Scores of the chosen experts, normalised to a sum of `scale`. The floor only keeps a sum of zeros
/// from dividing.
pub(crate) fn mixing_weights(scale: f32, scores: &[f32], routes: &mut Routes<Buffer>, r: usize) {
    let experts = routes.experts.id_row(r);
    let out = routes.weights.index(0, r);
    let sum: f32 = experts.iter().map(|e| scores[*e as usize]).sum();
    for (w, e) in routes.weights.floats_mut()[out].iter_mut().zip(experts) {
        *w = scale * scores[*e as usize] / sum.max(f32::MIN_POSITIVE);
    }
}
