use std::ops::Range;

use ds4_model::RowsImage;
use ds4_model::geometry::CSA_RATIO;

use super::{CacheFloats, dot};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

/// Index rows that one task scores.
const TASK_ROWS: usize = 64;

pub(crate) fn index_scores(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    range: Range<usize>,
    iq: &Buffer,
    weights: &Buffer,
    cache: &Buffer,
    scores: &mut Buffer,
) {
    let geometry = &cpu.geometry;
    let dim = geometry.index_dim;
    let scale = (dim as f32).powf(-0.5) * (geometry.n_index_heads as f32).powf(-0.5);
    for r in range.clone().filter(|r| rows.slot(*r).is_some()) {
        let slot = rows.slot[r] as usize;
        let n_visible = rows.n_visible(r, CSA_RATIO);
        let out = scores.index(0, r - range.start);
        let out = &mut scores.floats_mut()[out][..n_visible];
        cpu.pool.for_chunks(out, TASK_ROWS, |start, out| {
            let mut key = CacheFloats::new(dim);
            for (c, score) in out.iter_mut().enumerate() {
                let key = key.get(cache.cache_row(slot, start + c));
                *score = iq
                    .row(r)
                    .chunks_exact(dim)
                    .zip(weights.row(r))
                    .map(|(head, w)| w * scale * dot(head, key).max(0.0))
                    .sum();
            }
        });
    }
}
