use std::ops::Range;

use ds4_model::RowsImage;
use ds4_model::geometry::CSA_RATIO;

use crate::buffer::Buffer;

pub(crate) fn top_k(rows: &RowsImage, range: Range<usize>, scores: &Buffer, selected: &mut Buffer) {
    let k = selected.width();
    for r in range.clone().filter(|r| rows.slot(*r).is_some()) {
        let n_visible = rows.n_visible(r, CSA_RATIO);
        let mut chosen = largest(&scores.row(r - range.start)[..n_visible], k);
        chosen.sort_unstable();
        let out = selected.index(0, r);
        for (out, index) in selected.ids_mut()[out].iter_mut().zip(chosen) {
            *out = index;
        }
    }
}

/// Indices of the `k` largest values, largest first; of equal ones the lowest index first.
pub(crate) fn largest(values: &[f32], k: usize) -> Vec<u32> {
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
