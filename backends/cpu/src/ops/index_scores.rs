use std::ops::Range;

use ds4_model::RowsImage;
use ds4_model::geometry::CSA_RATIO;

use super::panel::{PANEL_VECTORS, Rows, fill_columns, tile};
use crate::backend::CpuBackend;
use crate::buffer::{Buffer, Cache};
use crate::pool::Spread;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

/// Index rows that one task scores; a multiple of every panel's width.
const TASK_KEYS: usize = 128;
/// Rows of a step that share the unpacking of index rows.
const TASK_ROWS: usize = 8;

pub(crate) fn index_scores(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    range: Range<usize>,
    iq: &Buffer,
    weights: &Buffer,
    cache: &Buffer,
    scores: &mut Buffer,
) {
    let (path, geometry) = (cpu.cpu, &cpu.geometry);
    let dim = geometry.index_dim;
    let scale = (dim as f32).powf(-0.5) * (geometry.n_index_heads as f32).powf(-0.5);
    let longest = range
        .clone()
        .filter(|r| rows.slot(*r).is_some())
        .map(|r| rows.n_visible(r, CSA_RATIO));
    let n_blocks = longest.max().unwrap_or(0).div_ceil(TASK_KEYS);
    let n_groups = range.len().div_ceil(TASK_ROWS);
    let width = scores.width();
    let scores = Spread::new(scores.floats_mut());
    let job = Job {
        rows,
        iq,
        weights,
        cache,
        scores: &scores,
        first_row: range.start,
        width,
        dim,
        n_heads: geometry.n_index_heads,
        scale,
    };
    let job = &job;
    cpu.pool.run(n_groups * n_blocks, |task, _| {
        // Groups of the same keys follow one another.
        let first = range.start + task % n_groups * TASK_ROWS;
        let group = first..(first + TASK_ROWS).min(range.end);
        let keys = task / n_groups * TASK_KEYS;
        let keys = keys..keys + TASK_KEYS;
        dispatch!(path, task_scores(job: &Job<'_>, group: Range<usize>, keys: Range<usize>));
    });
}

struct Job<'a> {
    rows: &'a RowsImage,
    iq: &'a Buffer,
    weights: &'a Buffer,
    cache: &'a Buffer,
    scores: &'a Spread<'a, f32>,
    first_row: usize,
    width: usize,
    dim: usize,
    n_heads: usize,
    scale: f32,
}

#[inline(always)]
fn task_scores<S: Simd>(s: S, job: &Job<'_>, group: Range<usize>, keys: Range<usize>) {
    match S::TILE_VECTORS {
        2 => task_on::<S, 2>(s, job, group, keys),
        _ => task_on::<S, 1>(s, job, group, keys),
    }
}

/// The scores of a block of keys for a group of rows, one panel of keys after the other.
#[inline(always)]
fn task_on<S: Simd, const N: usize>(s: S, job: &Job<'_>, group: Range<usize>, keys: Range<usize>) {
    let mut panel = [[0.0; LANES]; PANEL_VECTORS];
    let n_keys = job.cache.n_rows();
    for first in keys.step_by(N * LANES) {
        let keys = first..(first + N * LANES).min(n_keys);
        let mut unpacked = None;
        for r in group.clone() {
            let Some(slot) = job.rows.slot(r) else {
                continue;
            };
            let n_visible = job.rows.n_visible(r, CSA_RATIO);
            if first >= n_visible {
                continue;
            }
            let rows: Cache<'_> = job.cache.slot(slot);
            // A panel holds all channels, unless a model has very long index rows. Keys that only
            // later rows of the group see are unpacked with the others.
            let depth = PANEL_VECTORS / N;
            let (q, weights) = (job.iq.row(r), job.weights.row(r));
            let mut sums = [s.zero(); N];
            let mut head = 0;
            while head < job.n_heads {
                macro_rules! take {
                    ($m:literal) => {{
                        let mut dots = [[s.zero(); N]; $m];
                        for from in (0..job.dim).step_by(depth) {
                            let channels = from..(from + depth).min(job.dim);
                            let q = Rows {
                                values: &q[from..],
                                stride: job.dim,
                                n_rows: job.n_heads,
                                depth: channels.len(),
                            };
                            if unpacked != Some((slot, from)) {
                                let row = |i| rows.row(job.dim, i);
                                fill_columns::<S, N>(s, keys.clone(), row, channels, &mut panel);
                                unpacked = Some((slot, from));
                            }
                            dots = tile::<S, $m, N>(s, q, head, &panel[..q.depth * N], dots);
                        }
                        for m in 0..$m {
                            let weight = s.splat(weights[head + m] * job.scale);
                            for v in 0..N {
                                sums[v] = s.fma(weight, s.max(dots[m][v], s.zero()), sums[v]);
                            }
                        }
                        head += $m;
                    }};
                }
                match job.n_heads - head {
                    8.. if S::TILE_ROWS == 8 => take!(8),
                    4.. if S::TILE_ROWS >= 4 => take!(4),
                    2.. if S::TILE_ROWS >= 2 => take!(2),
                    _ => take!(1),
                }
            }
            let start = (r - job.first_row) * job.width + first;
            // SAFETY: tasks own different keys of different rows.
            let out = unsafe { job.scores.slice(start, keys.end.min(n_visible) - first) };
            for (v, out) in out.chunks_mut(LANES).enumerate() {
                s.store_part(sums[v], out);
            }
        }
    }
}
