use super::route_hash::mixing_weights;
use super::top_k::largest;
use super::{Buffer, Weight, real};
use crate::operands::Routes;
use crate::rows::RowsImage;

pub(super) fn route_top_k(
    scale: f32,
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
        for (out, e) in routes
            .experts
            .ids_mut(r)
            .iter_mut()
            .zip(largest(&biased, k))
        {
            *out = e as u32;
        }
        mixing_weights(scale, scores.row(r), routes, r);
    }
}
