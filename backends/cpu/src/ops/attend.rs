use ds4_formats::GgmlType;
use ds4_model::{CompressedRows, RowsImage};

use crate::backend::CpuBackend;
use crate::buffer::{Buffer, CacheRow};
use crate::kernels::{Job, RowPair, float};
use crate::lanes::{Lanes, on_every_path};
use crate::path::Cpu;
use crate::pool::Spread;
use crate::products::{ATTEND_HEADS, ATTEND_ROWS, Attend, attend_stride};
use crate::weight::Weight;

/// Attends to the rows in tiles of [`ATTEND_ROWS`], which all heads of a task share: a tile is
/// brought to f32 once. Between tiles every head carries its largest score so far, and what it has
/// summed is scaled down when a larger one comes (the online softmax of arXiv 1805.02867). Tiles
/// begin at a row's own first attended row, so they are the same in any batch.
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
    let (path, width, sinks) = (cpu.cpu, out.width(), sinks.vector());
    // Few rows are split by heads, so that every thread has some.
    let n_splits = (4 * cpu.pool.n_threads()).div_ceil(rows.len().max(1));
    let heads = n_heads
        .div_ceil(n_splits)
        .next_multiple_of(4)
        .min(ATTEND_HEADS);
    let n_parts = n_heads.div_ceil(heads);
    let outs = Spread::new(out.floats_mut());
    let n_tasks = rows.len() * n_parts;
    cpu.pool
        .run_with(&mut cpu.workers, n_tasks, |task, worker| {
            let (r, first) = (task / n_parts, task % n_parts * heads);
            if rows.slot(r).is_none() {
                return;
            }
            let n = heads.min(n_heads - first);
            let q = &q.row(r)[first * dim..][..n * dim];
            // SAFETY: tasks own different heads of different rows.
            let out = unsafe { outs.slice(r * width + first * dim, n * dim) };
            let sinks = &sinks[first..first + n];
            let attended = Attended::new(rows, window, r, kv, ring, compressed);
            heads_of_a_row(
                path,
                &worker.heads,
                &mut worker.attend,
                dim,
                q,
                sinks,
                &attended,
                out,
            );
        });
}

/// The rows that a query attends to: window rows in order of position, then compressed rows. Recent
/// tokens stand in both.
struct Attended<'a> {
    slot: usize,
    /// Position of the first window row, and of the first one in the batch.
    window_start: usize,
    batch_start: usize,
    /// Row of the batch that has position `batch_start`.
    first_row: usize,
    n_window: usize,
    n_compressed: usize,
    /// Indices of compressed rows, when they are selected.
    selected: Option<&'a [u32]>,
    kv: &'a Buffer,
    ring: &'a Buffer,
    cache: &'a Buffer,
}

impl<'a> Attended<'a> {
    fn new(
        rows: &RowsImage,
        window: usize,
        r: usize,
        kv: &'a Buffer,
        ring: &'a Buffer,
        compressed: &CompressedRows<'a, Buffer>,
    ) -> Attended<'a> {
        let end = rows.position[r] as usize + 1;
        let (cache, n_compressed, selected) = match *compressed {
            CompressedRows::None => (ring, 0, None),
            CompressedRows::All { cache, ratio } => (cache, rows.n_visible(r, ratio), None),
            CompressedRows::Selected {
                cache,
                ratio,
                selected,
            } => {
                let n = rows.n_visible(r, ratio).min(selected.width());
                (cache, n, Some(selected.id_row(r)))
            }
        };
        Attended {
            slot: rows.slot[r] as usize,
            window_start: end.saturating_sub(window),
            batch_start: rows.segment_position(r),
            first_row: rows.first_row[r] as usize,
            n_window: end.min(window),
            n_compressed,
            selected,
            kv,
            ring,
            cache,
        }
    }

    fn len(&self) -> usize {
        self.n_window + self.n_compressed
    }

    fn row(&self, i: usize) -> CacheRow<'a> {
        if let Some(c) = i.checked_sub(self.n_window) {
            let c = self.selected.map_or(c, |ids| ids[c] as usize);
            return self.cache.cache_row(self.slot, c);
        }
        let position = self.window_start + i;
        match position.checked_sub(self.batch_start) {
            Some(after) => CacheRow::F32(self.kv.row(self.first_row + after)),
            None => self
                .ring
                .cache_row(self.slot, position % self.ring.n_rows()),
        }
    }
}

/// `q`, `out`: `[n_heads, dim]`, `sinks`: `[n_heads]`.
fn heads_of_a_row(
    cpu: Cpu,
    heads: &[RowPair],
    memory: &mut Attend,
    dim: usize,
    q: &[f32],
    sinks: &[f32],
    attended: &Attended<'_>,
    out: &mut [f32],
) {
    let n_heads = sinks.len();
    let scale = (dim as f32).powf(-0.5);
    let stride = attend_stride(dim);
    // The sink is a first row whose score is its own and whose value is zero.
    out.fill(0.0);
    memory.largest[..n_heads].copy_from_slice(sinks);
    memory.weights[..n_heads].fill(1.0);
    for first in (0..attended.len()).step_by(ATTEND_ROWS) {
        let n = ATTEND_ROWS.min(attended.len() - first);
        for (i, row) in memory.tile.chunks_exact_mut(stride).take(n).enumerate() {
            match attended.row(first + i) {
                CacheRow::F32(from) => row[..dim].copy_from_slice(from),
                CacheRow::Bf16(from) => widen(cpu, from, &mut row[..dim]),
            }
        }
        let tile = &memory.tile[..n * stride];
        let scores = &mut memory.scores[..n_heads * ATTEND_ROWS];
        let job = Job {
            ty: GgmlType::F32,
            weights: zerocopy::IntoBytes::as_bytes(tile),
            row_bytes: 4 * stride,
            n_in: dim,
            acts: zerocopy::IntoBytes::as_bytes(q),
            act_stride: 4 * dim,
            pairs: &heads[..n_heads],
            out: scores.as_mut_ptr(),
            out_stride: ATTEND_ROWS,
        };
        // SAFETY: rows of `dim` floats on both sides; the scores have a row for every head.
        unsafe { float::dots(cpu, &job) };
        for (h, scores) in scores.chunks_exact_mut(ATTEND_ROWS).enumerate() {
            let largest = &mut memory.largest[h];
            let (factor, sum) = soften(cpu, &mut scores[..n], scale, largest);
            memory.factors[h] = factor;
            memory.weights[h] = memory.weights[h] * factor + sum;
        }
        accumulate(cpu, dim, n, tile, scores, &memory.factors[..n_heads], out);
    }
    for (out, weight) in out.chunks_exact_mut(dim).zip(&memory.weights) {
        super::elementwise::scale(cpu, out, 1.0 / weight);
    }
}

on_every_path! {
    /// bf16 to f32.
    fn widen(from: &[u16], to: &mut [f32]) = widen_lanes;
    /// Turns products into the weights of a softmax: scores are `scale` times the products, and a
    /// weight is `e^(score - largest)` with the largest score so far. Returns the factor for what
    /// was summed with the former largest, and the sum of the new weights.
    fn soften(products: &mut [f32], scale: f32, largest: &mut f32) -> (f32, f32) = soften_lanes;
    /// `out[h] = out[h] * factors[h] + Σ_i weights[h, i] * tile[i]` for `n` rows of the tile.
    fn accumulate(dim: usize, n: usize, tile: &[f32], weights: &[f32], factors: &[f32], out: &mut [f32]) = accumulate_lanes;
}

/// # Safety
/// As [`Lanes`]; so for all functions below.
#[inline(always)]
unsafe fn widen_lanes<L: Lanes>(from: &[u16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    let whole = to.len() / L::N * L::N;
    // SAFETY: the caller's promise; vectors within the slices.
    unsafe {
        for i in (0..whole).step_by(L::N) {
            L::load_bf16(from.as_ptr().add(i).cast()).store(to.as_mut_ptr().add(i));
        }
    }
    for i in whole..to.len() {
        to[i] = f32::from_bits(u32::from(from[i]) << 16);
    }
}

/// # Safety
/// See above.
#[inline(always)]
unsafe fn soften_lanes<L: Lanes>(
    products: &mut [f32],
    scale: f32,
    largest: &mut f32,
) -> (f32, f32) {
    let n = products.len();
    let before = *largest;
    for product in products.iter_mut() {
        *product *= scale;
        *largest = largest.max(*product);
    }
    // SAFETY: see above.
    unsafe {
        let shift = L::splat(*largest);
        let mut sum = 0.0;
        for i in (0..n).step_by(L::N) {
            let at = products.as_mut_ptr().add(i);
            let weights = L::load_first(at, n - i).sub(shift).exp();
            weights.store_first(at, n - i);
        }
        for weight in products {
            sum += *weight;
        }
        ((before - *largest).exp(), sum)
    }
}

/// # Safety
/// See above.
#[inline(always)]
unsafe fn accumulate_lanes<L: Lanes>(
    dim: usize,
    n: usize,
    tile: &[f32],
    weights: &[f32],
    factors: &[f32],
    out: &mut [f32],
) {
    let n_heads = factors.len();
    let stride = attend_stride(dim);
    assert!(tile.len() >= n * stride && out.len() == n_heads * dim);
    assert!(n <= ATTEND_ROWS && weights.len() >= n_heads * ATTEND_ROWS);
    // SAFETY: see above.
    unsafe {
        let mut h = 0;
        while h < n_heads {
            let (at, left) = (h, n_heads - h);
            let tile = tile.as_ptr();
            let weights = weights.as_ptr().add(at * ATTEND_ROWS);
            let factors = factors.as_ptr().add(at);
            let out = out.as_mut_ptr().add(at * dim);
            if left >= 4 {
                accumulate_heads::<L, 4>(dim, n, tile, weights, factors, out);
                h += 4;
            } else {
                accumulate_heads::<L, 1>(dim, n, tile, weights, factors, out);
                h += 1;
            }
        }
    }
}

/// # Safety
/// See above; the pointers are those of `H` heads.
#[inline(always)]
unsafe fn accumulate_heads<L: Lanes, const H: usize>(
    dim: usize,
    n: usize,
    tile: *const f32,
    weights: *const f32,
    factors: *const f32,
    out: *mut f32,
) {
    let stride = attend_stride(dim);
    // SAFETY: the caller's promise. Two vectors of `H` heads are summed at a time; channels that
    // fill no vector one by one.
    unsafe {
        let mut c = 0;
        while c + 2 * L::N <= dim {
            let mut sums = [[L::splat(0.0); 2]; H];
            for h in 0..H {
                let factor = L::splat(*factors.add(h));
                for v in 0..2 {
                    sums[h][v] = L::load(out.add(h * dim + c + v * L::N)).mul(factor);
                }
            }
            for i in 0..n {
                let row = tile.add(i * stride + c);
                let row = [L::load(row), L::load(row.add(L::N))];
                for h in 0..H {
                    let weight = L::splat(*weights.add(h * ATTEND_ROWS + i));
                    for v in 0..2 {
                        sums[h][v] = row[v].mul_add(weight, sums[h][v]);
                    }
                }
            }
            for h in 0..H {
                for v in 0..2 {
                    sums[h][v].store(out.add(h * dim + c + v * L::N));
                }
            }
            c += 2 * L::N;
        }
        while c < dim {
            for h in 0..H {
                let out = out.add(h * dim + c);
                *out *= *factors.add(h);
                for i in 0..n {
                    *out += *tile.add(i * stride + c) * *weights.add(h * ATTEND_ROWS + i);
                }
            }
            c += 1;
        }
    }
}
