use super::{Buffer, dot, real};
use crate::geometry::{CSA_RATIO, Geometry};
use crate::operands::IndexScores;
use crate::rows::RowsImage;

pub(super) fn index_scores(
    geometry: &Geometry,
    rows: &RowsImage,
    inputs: &IndexScores<'_, Buffer>,
    scores: &mut Buffer,
) {
    let tile = &inputs.tile;
    let dim = geometry.index_dim;
    let scale = (dim as f32).powf(-0.5) * (geometry.n_index_heads as f32).powf(-0.5);
    for r in real(rows).filter(|r| tile.rows.contains(r)) {
        let first = rows.first_compressed(r, CSA_RATIO);
        let out = &mut scores.floats[(r - tile.rows.start) * tile.stride..][..tile.stride];
        for (c, score) in out[..rows.n_visible(r, CSA_RATIO)].iter_mut().enumerate() {
            let key = inputs.cache.cached(first + c);
            *score = inputs
                .queries
                .row(r)
                .chunks_exact(dim)
                .zip(inputs.weights.row(r))
                .map(|(head, w)| w * scale * dot(head, key).max(0.0))
                .sum();
        }
    }
}
