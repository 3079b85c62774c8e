use super::{Buffer, Weight, dot, real};
use crate::geometry::Geometry;
use crate::operands::{Attend, CompressedRows};
use crate::rows::RowsImage;

pub(super) fn attend(
    geometry: &Geometry,
    rows: &RowsImage,
    inputs: &Attend<'_, Buffer, Weight>,
    out: &mut Buffer,
) {
    let dim = geometry.head_dim;
    let scale = (dim as f32).powf(-0.5);
    for r in real(rows) {
        let attended = attended_rows(rows, r, inputs);
        let heads = inputs.q.row(r).chunks_exact(dim);
        let outs = out.row_mut(r).chunks_exact_mut(dim);
        for ((q, o), sink) in heads.zip(outs).zip(inputs.sinks.vector()) {
            let z: Vec<f32> = attended.iter().map(|row| dot(q, row) * scale).collect();
            let max = z.iter().fold(*sink, |m, z| m.max(*z));
            let mut weight = (sink - max).exp();
            o.fill(0.0);
            for (row, z) in attended.iter().zip(z) {
                let p = (z - max).exp();
                weight += p;
                for (o, x) in o.iter_mut().zip(*row) {
                    *o += p * x;
                }
            }
            for o in o {
                *o /= weight;
            }
        }
    }
}

/// Window rows in order of position, then compressed rows. Recent tokens stand
/// in both; they are not de-duplicated.
fn attended_rows<'a>(
    rows: &RowsImage,
    r: usize,
    inputs: &Attend<'a, Buffer, Weight>,
) -> Vec<&'a [f32]> {
    let Attend { kv, ring, .. } = inputs;
    let slot = rows.slot[r] as usize;
    let batch_start = rows.segment_position(r);
    let first_row = rows.first_row[r] as usize;
    let window_start = rows.window_start[r] as usize;
    let older = window_start..batch_start;
    let mut attended: Vec<&[f32]> = older
        .map(|p| ring.slot_row(slot, p % ring.n_rows()))
        .collect();
    let first_seen = first_row + window_start.saturating_sub(batch_start);
    attended.extend((first_seen..rows.see_end[r] as usize).map(|row| kv.row(row)));
    match &inputs.compressed {
        CompressedRows::None => {}
        CompressedRows::All { cache, ratio } => {
            let first = rows.first_compressed(r, *ratio);
            let visible = first..first + rows.n_visible(r, *ratio);
            attended.extend(visible.map(|c| cache.cached(c)));
        }
        CompressedRows::Selected {
            cache,
            ratio,
            selected,
        } => {
            let ids = selected.ids(r).iter().take(rows.n_visible(r, *ratio));
            let first = rows.first_compressed(r, *ratio);
            attended.extend(ids.map(|c| cache.cached(first + *c as usize)));
        }
    }
    attended
}
