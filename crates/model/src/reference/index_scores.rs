use std::ops::Range;

use super::{Buffer, dot, real};
use crate::geometry::{CSA_RATIO, Geometry};
use crate::rows::RowsImage;

pub(super) fn index_scores(
    geometry: &Geometry,
    rows: &RowsImage,
    range: Range<usize>,
    iq: &Buffer,
    weights: &Buffer,
    cache: &Buffer,
    scores: &mut Buffer,
) {
    let dim = geometry.index_dim;
    let scale = (dim as f32).powf(-0.5) * (geometry.n_index_heads as f32).powf(-0.5);
    for r in real(rows).filter(|r| range.contains(r)) {
        let slot = rows.slot[r] as usize;
        let out = scores.row_mut(r - range.start);
        for (c, score) in out[..rows.n_visible(r, CSA_RATIO)].iter_mut().enumerate() {
            let key = cache.slot_row(slot, c);
            *score = iq
                .row(r)
                .chunks_exact(dim)
                .zip(weights.row(r))
                .map(|(head, w)| w * scale * dot(head, key).max(0.0))
                .sum();
        }
    }
}
