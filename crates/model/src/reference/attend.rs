use super::{Buffer, Weight, dot, real};
use crate::backend::CompressedRows;
use crate::geometry::Geometry;
use crate::rows::RowsImage;

pub(super) fn attend(
    geometry: &Geometry,
    rows: &RowsImage,
    q: &Buffer,
    kv: &Buffer,
    ring: &Buffer,
    compressed: &CompressedRows<'_, Buffer>,
    sinks: &Weight,
    out: &mut Buffer,
) {
    let dim = geometry.head_dim;
    let scale = (dim as f32).powf(-0.5);
    for r in real(rows) {
        let attended = attended_rows(geometry, rows, r, kv, ring, compressed);
        let heads = q.row(r).chunks_exact(dim);
        let outs = out.row_mut(r).chunks_exact_mut(dim);
        for ((q, o), sink) in heads.zip(outs).zip(sinks.vector()) {
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
    geometry: &Geometry,
    rows: &RowsImage,
    r: usize,
    kv: &'a Buffer,
    ring: &'a Buffer,
    compressed: &CompressedRows<'a, Buffer>,
) -> Vec<&'a [f32]> {
    let slot = rows.slot[r] as usize;
    let position = rows.position[r] as usize;
    let batch_start = rows.segment_position(r);
    let window = (position + 1).saturating_sub(geometry.window)..position + 1;
    let mut attended: Vec<&[f32]> = window
        .map(|p| {
            if p >= batch_start {
                kv.row(rows.first_row[r] as usize + (p - batch_start))
            } else {
                ring.slot_row(slot, p % ring.n_rows())
            }
        })
        .collect();
    match compressed {
        CompressedRows::None => {}
        CompressedRows::All { cache, ratio } => {
            attended.extend((0..rows.n_visible(r, *ratio)).map(|c| cache.slot_row(slot, c)));
        }
        CompressedRows::Selected {
            cache,
            ratio,
            selected,
        } => {
            let ids = selected.ids(r).iter().take(rows.n_visible(r, *ratio));
            attended.extend(ids.map(|c| cache.slot_row(slot, *c as usize)));
        }
    }
    attended
}
