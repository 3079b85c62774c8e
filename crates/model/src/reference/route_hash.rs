use super::{Buffer, Weight, real};
use crate::operands::Routes;
use crate::rows::RowsImage;

pub(super) fn route_hash(
    scale: f32,
    rows: &RowsImage,
    ids: &Weight,
    scores: &Buffer,
    routes: &mut Routes<Buffer>,
) {
    for r in real(rows) {
        let chosen = ids.ids(rows.token[r] as usize);
        for (out, id) in routes.experts.ids_mut(r).iter_mut().zip(chosen) {
            *out = id;
        }
        mixing_weights(scale, scores.row(r), routes, r);
    }
}

/// Scores of the chosen experts, normalised to a sum of `scale`. The floor only
/// keeps a sum of zeros from dividing.
pub(super) fn mixing_weights(scale: f32, scores: &[f32], routes: &mut Routes<Buffer>, r: usize) {
    let experts = routes.experts.ids(r);
    let weights = routes.weights.row_mut(r);
    let sum: f32 = experts.iter().map(|e| scores[*e as usize]).sum();
    for (w, e) in weights.iter_mut().zip(experts) {
        *w = scale * scores[*e as usize] / sum.max(f32::MIN_POSITIVE);
    }
}
