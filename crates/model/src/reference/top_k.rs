use super::{Buffer, real};
use crate::geometry::CSA_RATIO;
use crate::operands::ScoreTile;
use crate::rows::RowsImage;

pub(super) fn top_k(rows: &RowsImage, tile: &ScoreTile, scores: &Buffer, selected: &mut Buffer) {
    let k = selected.width();
    for r in real(rows).filter(|r| tile.rows.contains(r)) {
        let n_visible = rows.n_visible(r, CSA_RATIO);
        let row = &scores.floats[(r - tile.rows.start) * tile.stride..];
        let mut chosen = largest(&row[..n_visible], k);
        chosen.sort_unstable();
        for (out, index) in selected.ids_mut(r).iter_mut().zip(chosen) {
            *out = index as u32;
        }
    }
}

/// Indices of the `k` largest values, largest first; of equal ones the lowest
/// index first.
pub(super) fn largest(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}
