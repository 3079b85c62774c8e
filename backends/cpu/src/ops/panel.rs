//! Products of rows in memory with a *panel*: columns laid out in vectors, so that a sum needs no
//! reduction across lanes. Attention and the indexer's scores are made of them.

use std::ops::Range;

use crate::buffer::Cache;
use crate::pool::Spread;
use crate::simd::{LANES, Lanes, Simd, SimdExt};

/// Vectors of a panel: 16 KiB, half of the smallest first-level cache in use.
pub(crate) const PANEL_VECTORS: usize = 256;

/// `n_rows` rows of `depth` values, one every `stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) n_rows: usize,
    pub(crate) depth: usize,
}

impl Rows<'_> {
    fn check(&self) {
        let end = (self.n_rows.max(1) - 1) * self.stride + self.depth;
        assert!(end <= self.values.len(), "rows that end after their memory");
    }
}

/// Where products go: `n_columns` columns of rows, one every `stride` from `start` on.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) values: &'a Spread<'a, f32>,
    pub(crate) start: usize,
    pub(crate) stride: usize,
    pub(crate) n_columns: usize,
}

/// What products are added to.
#[derive(Clone, Copy)]
pub(crate) enum Onto<'a> {
    Zero,
    /// What is there, times a factor for each row.
    Scaled(&'a [f32]),
    /// What is there.
    Kept,
}

/// `out[r] = onto[r] + Σ_k rows[r][k] * panel[k]`, the panel `[depth, N]` vectors.
///
/// # Safety
///
/// Nobody else touches the columns of the target.
#[inline(always)]
pub(crate) unsafe fn add_products<S: Simd, const N: usize>(
    s: S,
    rows: Rows<'_>,
    panel: &[Lanes],
    onto: Onto<'_>,
    out: Target<'_>,
) {
    rows.check();
    let panel = &panel[..rows.depth * N];
    assert!(out.n_columns <= N * LANES);
    let mut row = 0;
    while row < rows.n_rows {
        // SAFETY: the caller's promise.
        unsafe {
            row += if S::TILE_ROWS == 8 && rows.n_rows - row >= 8 {
                add_tile::<S, 8, N>(s, rows, row, panel, onto, out)
            } else if S::TILE_ROWS >= 4 && rows.n_rows - row >= 4 {
                add_tile::<S, 4, N>(s, rows, row, panel, onto, out)
            } else if S::TILE_ROWS >= 2 && rows.n_rows - row >= 2 {
                add_tile::<S, 2, N>(s, rows, row, panel, onto, out)
            } else {
                add_tile::<S, 1, N>(s, rows, row, panel, onto, out)
            };
        }
    }
}

/// The rows `row .. row + M`; returns `M`.
///
/// # Safety
///
/// As [`add_products`].
#[inline(always)]
unsafe fn add_tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    rows: Rows<'_>,
    row: usize,
    panel: &[Lanes],
    onto: Onto<'_>,
    out: Target<'_>,
) -> usize {
    let mut sums = [[s.zero(); N]; M];
    if !matches!(onto, Onto::Zero) {
        for m in 0..M {
            let factor = match onto {
                Onto::Scaled(factors) => factors[row + m],
                _ => 1.0,
            };
            // SAFETY: the caller's promise.
            let old = unsafe { target_row(&out, row + m) };
            for (v, old) in old.chunks(LANES).enumerate() {
                sums[m][v] = s.mul(s.splat(factor), s.load_part(old));
            }
        }
    }
    let sums = tile::<S, M, N>(s, rows, row, panel, sums);
    for m in 0..M {
        // SAFETY: the caller's promise.
        let new = unsafe { target_row(&out, row + m) };
        for (v, new) in new.chunks_mut(LANES).enumerate() {
            s.store_part(sums[m][v], new);
        }
    }
    M
}

/// # Safety
///
/// As [`add_products`], and no other part of this row is alive.
#[inline(always)]
#[allow(clippy::mut_from_ref)]
unsafe fn target_row<'a>(out: &Target<'a>, row: usize) -> &'a mut [f32] {
    // SAFETY: the caller's promise.
    unsafe {
        out.values
            .slice(out.start + row * out.stride, out.n_columns)
    }
}

/// `sums[m] += Σ_k rows[row + m][k] * panel[k]`: the loop that does the work. The rows lie in memory
/// ([`Rows::check`]), and the panel has `depth * N` vectors.
#[inline(always)]
pub(crate) fn tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    rows: Rows<'_>,
    row: usize,
    panel: &[Lanes],
    mut sums: [[S::F; N]; M],
) -> [[S::F; N]; M] {
    assert!(row + M <= rows.n_rows && panel.len() == rows.depth * N);
    let first = rows.values[row * rows.stride..].as_ptr();
    for (k, panel) in panel.chunks_exact(N).enumerate() {
        let mut column = [s.zero(); N];
        for v in 0..N {
            column[v] = s.load(&panel[v]);
        }
        for m in 0..M {
            // SAFETY: `k` is below `depth`, and all rows lie in `values`.
            let x = s.splat(unsafe { *first.add(m * rows.stride + k) });
            for v in 0..N {
                sums[m][v] = s.fma(x, column[v], sums[m][v]);
            }
        }
    }
    sums
}

/// A panel whose columns are the rows `columns` of a cache: vector `[k, v]` has channel
/// `channels.start + k` of rows `16 v ..`. Missing rows repeat the last one.
#[inline(always)]
pub(crate) fn fill_columns<'a, S: Simd, const N: usize>(
    s: S,
    columns: Range<usize>,
    row: impl Fn(usize) -> Cache<'a>,
    channels: Range<usize>,
    panel: &mut [Lanes],
) {
    debug_assert!(!columns.is_empty() && columns.len() <= N * LANES);
    let panel = &mut panel[..channels.len() * N];
    for v in 0..N {
        let first = columns.start + v * LANES;
        let rows: [Cache<'_>; LANES] =
            std::array::from_fn(|i| row((first + i).min(columns.end - 1)));
        let mut c = channels.start;
        match rows[0] {
            Cache::Bf16(_) => {
                // Two channels travel in a lane.
                while channels.end - c >= 2 * LANES {
                    let mut pairs = [s.zero(); LANES];
                    let mut alike = true;
                    for (pairs, row) in pairs.iter_mut().zip(rows) {
                        match row {
                            Cache::Bf16(row) => {
                                let (chunks, _) = row[c..].as_chunks();
                                *pairs = s.load_pairs(&chunks[0]);
                            }
                            Cache::F32(_) => alike = false,
                        }
                    }
                    if !alike {
                        break;
                    }
                    for (i, pairs) in s.transpose(pairs).into_iter().enumerate() {
                        let (even, odd) = s.split_bf16(pairs);
                        let k = c - channels.start + 2 * i;
                        s.store(even, &mut panel[k * N + v]);
                        s.store(odd, &mut panel[(k + 1) * N + v]);
                    }
                    c += 2 * LANES;
                }
            }
            Cache::F32(_) => {
                while channels.end - c >= LANES {
                    let mut square = [s.zero(); LANES];
                    let mut alike = true;
                    for (x, row) in square.iter_mut().zip(rows) {
                        match row {
                            Cache::F32(row) => {
                                let (chunks, _) = row[c..].as_chunks();
                                *x = s.load(&chunks[0]);
                            }
                            Cache::Bf16(_) => alike = false,
                        }
                    }
                    if !alike {
                        break;
                    }
                    for (i, x) in s.transpose(square).into_iter().enumerate() {
                        s.store(x, &mut panel[(c - channels.start + i) * N + v]);
                    }
                    c += LANES;
                }
            }
        }
        // The last channels, or a block where rows of two kinds meet.
        for (i, row) in rows.into_iter().enumerate() {
            for c in c..channels.end {
                panel[(c - channels.start) * N + v][i] = match row {
                    Cache::F32(row) => row[c],
                    Cache::Bf16(row) => f32::from_bits(u32::from(row[c]) << 16),
                };
            }
        }
    }
}

/// A panel whose row `k` is channels of row `depth.start + k` of a cache.
#[inline(always)]
pub(crate) fn fill_rows<'a, S: Simd, const N: usize>(
    s: S,
    depth: Range<usize>,
    row: impl Fn(usize) -> Cache<'a>,
    channels: Range<usize>,
    panel: &mut [Lanes],
) {
    debug_assert!(channels.len() <= N * LANES);
    for (i, panel) in depth.zip(panel.chunks_exact_mut(N)) {
        match row(i) {
            Cache::F32(row) => {
                for (x, out) in row[channels.clone()].chunks(LANES).zip(panel) {
                    s.store(s.load_part(x), out);
                }
            }
            Cache::Bf16(row) => {
                for (x, out) in row[channels.clone()].chunks(LANES).zip(panel) {
                    match x.try_into() {
                        Ok(whole) => s.store(s.load_bf16(whole), out),
                        Err(_) => {
                            let mut lanes = [0; LANES];
                            lanes[..x.len()].copy_from_slice(x);
                            s.store(s.load_bf16(&lanes), out);
                        }
                    }
                }
            }
        }
    }
}
