use ds4_model::{CompressedRows, RowsImage};

use super::{CacheFloats, dot};
use crate::backend::CpuBackend;
use crate::buffer::{Buffer, CacheRow};
use crate::pool::Spread;
use crate::weight::Weight;

/// Heads that one task computes.
const TASK_HEADS: usize = 8;

pub(crate) fn attend(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    q: &Buffer,
    kv: &Buffer,
    ring: &Buffer,
    compressed: &CompressedRows<'_, Buffer>,
    sinks: &Weight,
    out: &mut Buffer,
) {
    let geometry = &cpu.geometry;
    let (dim, n_heads, window) = (geometry.head_dim, geometry.n_heads, geometry.window);
    let scale = (dim as f32).powf(-0.5);
    let n_groups = n_heads.div_ceil(TASK_HEADS);
    let width = out.width();
    let sinks = sinks.vector();
    let outs = Spread::new(out.floats_mut());
    cpu.pool.run(rows.len() * n_groups, |task, _| {
        let (r, first) = (task / n_groups, task % n_groups * TASK_HEADS);
        if rows.slot(r).is_none() {
            return;
        }
        let heads = TASK_HEADS.min(n_heads - first);
        let q = &q.row(r)[first * dim..][..heads * dim];
        // SAFETY: tasks own different heads of different rows.
        let out = unsafe { outs.slice(r * width + first * dim, heads * dim) };
        let mut floats = CacheFloats::new(dim);
        let attended = attended_rows(rows, window, r, kv, ring, compressed);
        let n = attended.len();
        let mut p = vec![0.0; heads * n];
        for (i, row) in attended.iter().enumerate() {
            let row = floats.get(*row);
            for h in 0..heads {
                p[h * n + i] = dot(&q[h * dim..][..dim], row) * scale;
            }
        }
        for (p, sink) in p.chunks_exact_mut(n).zip(&sinks[first..]) {
            let max = p.iter().fold(*sink, |m, z| m.max(*z));
            let mut weight = (sink - max).exp();
            for p in p.iter_mut() {
                *p = (*p - max).exp();
                weight += *p;
            }
            for p in p {
                *p /= weight;
            }
        }
        out.fill(0.0);
        for (i, row) in attended.iter().enumerate() {
            let row = floats.get(*row);
            for h in 0..heads {
                let p = p[h * n + i];
                for (o, x) in out[h * dim..][..dim].iter_mut().zip(row) {
                    *o += p * x;
                }
            }
        }
    });
}

/// Window rows in order of position, then compressed rows. Recent tokens stand in both.
fn attended_rows<'a>(
    rows: &RowsImage,
    window: usize,
    r: usize,
    kv: &'a Buffer,
    ring: &'a Buffer,
    compressed: &CompressedRows<'a, Buffer>,
) -> Vec<CacheRow<'a>> {
    let slot = rows.slot[r] as usize;
    let position = rows.position[r] as usize;
    let batch_start = rows.segment_position(r);
    let window = (position + 1).saturating_sub(window)..position + 1;
    let mut attended: Vec<CacheRow<'_>> = window
        .map(|p| {
            if p >= batch_start {
                CacheRow::F32(kv.row(rows.first_row[r] as usize + (p - batch_start)))
            } else {
                ring.cache_row(slot, p % ring.n_rows())
            }
        })
        .collect();
    match compressed {
        CompressedRows::None => {}
        CompressedRows::All { cache, ratio } => {
            attended.extend((0..rows.n_visible(r, *ratio)).map(|c| cache.cache_row(slot, c)));
        }
        CompressedRows::Selected {
            cache,
            ratio,
            selected,
        } => {
            let ids = selected.id_row(r).iter().take(rows.n_visible(r, *ratio));
            attended.extend(ids.map(|c| cache.cache_row(slot, *c as usize)));
        }
    }
    attended
}
