use std::ops::Range;

use super::{Buffer, real};
use crate::geometry::CSA_RATIO;
use crate::rows::RowsImage;

pub(super) fn top_k(rows: &RowsImage, range: Range<usize>, scores: &Buffer, selected: &mut Buffer) {
    let k = selected.width();
    for r in real(rows).filter(|r| range.contains(r)) {
        let n_visible = rows.n_visible(r, CSA_RATIO);
        let mut chosen = largest(&scores.row(r - range.start)[..n_visible], k);
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
