//! The indexer's scores.
//!
//! Rounded index rows and queries are small whole numbers (twice an E2M1 value, at most 12) times
//! powers of two that differ little between the blocks of a row. Where they differ by a factor of 8
//! at most, a whole row is bytes times one power of two; a path that multiplies bytes uses that. The
//! sums are exact either way, in integers or in f32, so that both ways give the same bits.

use std::ops::Range;

use ds4_model::geometry::CSA_RATIO;
use ds4_model::{BackendError, ElementType, Geometry, IndexScores, RowsImage};
use zerocopy::IntoBytes;

use super::panel::{PANEL_VECTORS, Rows, fill_columns, tile};
use crate::backend::CpuBackend;
use crate::buffer::{Buffer, Cache};
use crate::memory::Aligned;
use crate::pool::Spread;
use crate::products::grow;
use crate::simd::{LANES, Lanes, Simd, SimdExt, dispatch};

/// Index rows that one task scores; a multiple of every panel's width.
const TASK_KEYS: usize = 128;
/// Rows of a step that share the unpacking of index rows.
const TASK_ROWS: usize = 8;
/// Channels of a head that fill whole lanes of bytes, twice over.
const BYTE_CHANNELS: usize = 4 * LANES;
/// Most channels of index rows that are multiplied as bytes.
const MAX_BYTE_CHANNELS: usize = 256;
/// Powers of two that rows are bytes of: others are left to floats, whose products stay normal.
const STEPS: Range<f32> = 1e-15..1e15;

/// Indexer queries as bytes.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    /// `[n_rows, n_heads, dim]`.
    bytes: Aligned<u8>,
    /// What a byte counts, for each head; 0 for the heads of a row that bytes cannot hold.
    steps: Aligned<f32>,
    /// Where a head's sums begin, to make up for the bias of the keys: i32.
    starts: Aligned<u32>,
}

impl Queries {
    /// Takes the memory for `n_rows` rows.
    pub(crate) fn reserve(
        &mut self,
        geometry: &Geometry,
        n_rows: usize,
    ) -> Result<(), BackendError> {
        let n_heads = n_rows.saturating_mul(geometry.n_index_heads);
        let what = "the indexer's queries";
        grow(
            &mut self.bytes,
            n_heads.saturating_mul(geometry.index_dim),
            what,
        )?;
        grow(&mut self.steps, n_heads, what)?;
        grow(&mut self.starts, n_heads, what)
    }
}

pub(crate) fn index_scores(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    inputs: &IndexScores<'_, Buffer>,
    scores: &mut Buffer,
) {
    let IndexScores {
        tile,
        queries: iq,
        weights,
        cache,
    } = inputs;
    let range = tile.rows.clone();
    let (path, geometry) = (cpu.cpu, &cpu.geometry);
    let (dim, n_heads) = (geometry.index_dim, geometry.n_index_heads);
    let scale = (dim as f32).powf(-0.5) * (n_heads as f32).powf(-0.5);
    let longest = range
        .clone()
        .filter(|r| rows.slot(*r).is_some())
        .map(|r| rows.n_visible(r, CSA_RATIO));
    let n_blocks = longest.max().unwrap_or(0).div_ceil(TASK_KEYS);
    let n_groups = range.len().div_ceil(TASK_ROWS);

    let suits_bytes = cache.element() == ElementType::Bf16
        && dim.is_multiple_of(BYTE_CHANNELS)
        && dim <= MAX_BYTE_CHANNELS
        && range.len() * n_heads <= cpu.queries.steps.len();
    let queries = &mut cpu.queries;
    if suits_bytes && dispatch!(path, has_bytes() -> bool) {
        let bytes = Spread::new(&mut queries.bytes);
        let steps = Spread::new(&mut queries.steps);
        let starts = Spread::new(&mut queries.starts);
        cpu.pool.run(range.len(), |i, _| {
            if rows.slot(range.start + i).is_none() {
                return;
            }
            let query = iq.row(range.start + i);
            // SAFETY: tasks own different rows.
            let (bytes, steps, starts) = unsafe {
                (
                    bytes.slice(i * n_heads * dim, n_heads * dim),
                    steps.slice(i * n_heads, n_heads),
                    starts.slice(i * n_heads, n_heads),
                )
            };
            dispatch!(
                path,
                query_bytes(query: &[f32], bytes: &mut [u8], steps: &mut [f32], starts: &mut [u32])
            );
        });
    } else {
        let n = queries.steps.len().min(range.len() * n_heads);
        queries.steps[..n].fill(0.0);
    }

    let scores = Spread::new(scores.floats_mut());
    let job = Job {
        rows,
        iq,
        weights,
        cache,
        scores: &scores,
        first_row: range.start,
        width: tile.stride,
        dim,
        n_heads,
        scale,
        queries: &cpu.queries,
        bytes: suits_bytes,
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

#[inline(always)]
fn has_bytes<S: Simd>(_: S) -> bool {
    S::HAS_BYTES
}

/// The power of two that makes bytes below 128 of numbers up to `largest`, and its inverse; zeros
/// when there is no need of one, `None` when it is out of [`STEPS`].
#[inline(always)]
fn step_of(largest: f32) -> Option<(f32, f32)> {
    if largest == 0.0 {
        return Some((0.0, 0.0));
    }
    let step = f32::from_bits(largest.to_bits() & 0x7f80_0000) / 64.0;
    STEPS.contains(&step).then(|| (step, 1.0 / step))
}

/// Writes the heads of a row as bytes; steps of 0 when one of them does not suit. A head of zeros
/// has any step but 0.
#[inline(always)]
fn query_bytes<S: Simd>(
    s: S,
    query: &[f32],
    bytes: &mut [u8],
    steps: &mut [f32],
    starts: &mut [u32],
) {
    let dim = query.len() / steps.len();
    for head in 0..steps.len() {
        let query = &query[head * dim..][..dim];
        let bytes = &mut bytes[head * dim..][..dim];
        let Some((step, inverse)) = step_of(s.largest_magnitude(query)) else {
            steps.fill(0.0);
            return;
        };
        let (query, _) = query.as_chunks();
        let (chunks, _) = bytes.as_chunks_mut();
        let mut exact = true;
        for (x, out) in query.iter().zip(chunks) {
            exact &= s.store_bytes(s.mul(s.load(x), s.splat(inverse)), out);
        }
        if !exact {
            steps.fill(0.0);
            return;
        }
        let sum: i32 = bytes.iter().map(|b| i32::from(*b as i8)).sum();
        steps[head] = if step == 0.0 { 1.0 } else { step };
        starts[head] = (-i32::from(S::BYTE_BIAS) * sum) as u32;
    }
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
    queries: &'a Queries,
    /// Whether keys may be bytes.
    bytes: bool,
}

/// Keys as bytes: four channels of each of `N` times sixteen keys, `[dim / 4, N]`, and what a byte
/// of each key counts.
struct ByteKeys<const N: usize> {
    panel: [[Lanes<[u8; 4]>; N]; MAX_BYTE_CHANNELS / 4],
    steps: [Lanes; N],
}

impl<const N: usize> ByteKeys<N> {
    /// Unpacks the rows `keys`; missing ones repeat the last. `false` when bytes cannot hold them.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, keys: Range<usize>, rows: &[u16], dim: usize) -> bool {
        let mut square = [[0.0; LANES]; LANES];
        for v in 0..N {
            for channel in (0..dim).step_by(BYTE_CHANNELS) {
                for i in 0..LANES {
                    let key = (keys.start + v * LANES + i).min(keys.end - 1);
                    let (row, _) = rows[key * dim..][..dim].as_chunks::<LANES>();
                    if channel == 0 {
                        let mut largest = s.zero();
                        for x in row {
                            largest = s.max(s.abs(s.load_bf16(x)), largest);
                        }
                        let Some((step, _)) = step_of(s.largest(largest)) else {
                            return false;
                        };
                        self.steps[v][i] = step;
                    }
                    let step = self.steps[v][i];
                    let inverse = s.splat(if step == 0.0 { 0.0 } else { 1.0 / step });
                    let bytes = square[i].as_mut_bytes().as_chunks_mut::<LANES>().0;
                    let mut exact = true;
                    for (x, out) in row[channel / LANES..].iter().zip(bytes) {
                        exact &= s.store_bytes(s.mul(s.load_bf16(x), inverse), out);
                        for byte in out {
                            *byte ^= S::BYTE_BIAS;
                        }
                    }
                    if !exact {
                        return false;
                    }
                }
                let mut vectors = [s.zero(); LANES];
                for i in 0..LANES {
                    vectors[i] = s.load(&square[i]);
                }
                let vectors = s.transpose(vectors);
                for i in 0..LANES {
                    let mut lanes = [0.0; LANES];
                    s.store(vectors[i], &mut lanes);
                    self.panel[channel / 4 + i][v] = zerocopy::transmute!(lanes);
                }
            }
        }
        true
    }
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
    let mut byte_keys = ByteKeys {
        panel: [[[[0; 4]; LANES]; N]; MAX_BYTE_CHANNELS / 4],
        steps: [[0.0; LANES]; N],
    };
    for first in keys.step_by(N * LANES) {
        // What the panels hold: channels of a slot, and whether bytes hold the keys of a slot.
        let (mut unpacked, mut in_bytes) = (None, None);
        for r in group.clone() {
            let Some(slot) = job.rows.slot(r) else {
                continue;
            };
            let n_visible = job.rows.n_visible(r, CSA_RATIO);
            if first >= n_visible {
                continue;
            }
            // Keys that only later rows of the group see are unpacked with the others.
            let base = job.rows.first_compressed(r, CSA_RATIO);
            let rows: Cache<'_> = job.cache.rows_from(base);
            let keys = first..(first + N * LANES).min(job.cache.n_rows() - base);
            let row = r - job.first_row;
            let mut sums = None;
            if S::HAS_BYTES && job.bytes && job.queries.steps[row * job.n_heads] != 0.0 {
                if let (Cache::Bf16(rows), None) = (rows, in_bytes) {
                    in_bytes = Some((slot, byte_keys.fill(s, keys.clone(), rows, job.dim)));
                } else if let (Cache::Bf16(rows), Some((other, _))) = (rows, in_bytes)
                    && other != slot
                {
                    in_bytes = Some((slot, byte_keys.fill(s, keys.clone(), rows, job.dim)));
                }
                if in_bytes == Some((slot, true)) {
                    sums = Some(byte_scores(s, job, r, &byte_keys));
                }
            }
            let sums = match sums {
                Some(sums) => sums,
                None => {
                    let mut sums = [s.zero(); N];
                    let mut head = 0;
                    while head < job.n_heads {
                        macro_rules! take {
                            ($m:literal) => {{
                                let mut dots = [[s.zero(); N]; $m];
                                // A panel holds all channels, unless index rows are very long.
                                let depth = PANEL_VECTORS / N;
                                for from in (0..job.dim).step_by(depth) {
                                    let channels = from..(from + depth).min(job.dim);
                                    let q = Rows {
                                        values: &job.iq.row(r)[from..],
                                        stride: job.dim,
                                        n_rows: job.n_heads,
                                        depth: channels.len(),
                                    };
                                    if unpacked != Some((slot, from)) {
                                        let row = |i| rows.row(job.dim, i);
                                        let keys = keys.clone();
                                        fill_columns::<S, N>(s, keys, row, channels, &mut panel);
                                        unpacked = Some((slot, from));
                                    }
                                    let panel = &panel[..q.depth * N];
                                    dots = tile::<S, $m, N>(s, q, head, panel, dots);
                                }
                                for m in 0..$m {
                                    let weight = job.weights.row(r)[head + m] * job.scale;
                                    sums = add_head(s, weight, dots[m], sums);
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
                    sums
                }
            };
            let start = row * job.width + first;
            // SAFETY: tasks own different keys of different rows.
            let out = unsafe { job.scores.slice(start, keys.end.min(n_visible) - first) };
            for (v, out) in out.chunks_mut(LANES).enumerate() {
                s.store_part(sums[v], out);
            }
        }
    }
}

/// `sums + weight * max(0, dots)`.
#[inline(always)]
fn add_head<S: Simd, const N: usize>(
    s: S,
    weight: f32,
    dots: [S::F; N],
    mut sums: [S::F; N],
) -> [S::F; N] {
    for v in 0..N {
        sums[v] = s.fma(s.splat(weight), s.max(dots[v], s.zero()), sums[v]);
    }
    sums
}

/// The scores of a panel of keys for row `r`, both as bytes.
#[inline(always)]
fn byte_scores<S: Simd, const N: usize>(
    s: S,
    job: &Job<'_>,
    r: usize,
    keys: &ByteKeys<N>,
) -> [S::F; N] {
    let (dim, n_heads) = (job.dim, job.n_heads);
    let first_head = (r - job.first_row) * n_heads;
    let weights = job.weights.row(r);
    let steps = &job.queries.steps[first_head..][..n_heads];
    let starts = &job.queries.starts[first_head..][..n_heads];
    let (bytes, _) = job.queries.bytes[first_head * dim..][..n_heads * dim].as_chunks::<4>();
    let n_fours = dim / 4;
    let panel = &keys.panel[..n_fours];
    let mut sums = [s.zero(); N];
    let mut head = 0;
    while head < n_heads {
        macro_rules! take {
            ($m:literal) => {{
                let mut dots = [[s.splat_int(0); N]; $m];
                for m in 0..$m {
                    dots[m] = [s.splat_int(starts[head + m] as i32); N];
                }
                let query = &bytes[head * n_fours..][..$m * n_fours];
                for (k, panel) in panel.iter().enumerate() {
                    for m in 0..$m {
                        let four = query[m * n_fours + k];
                        for v in 0..N {
                            dots[m][v] = s.dot_bytes(dots[m][v], &panel[v], four);
                        }
                    }
                }
                for m in 0..$m {
                    let mut products = [s.zero(); N];
                    for v in 0..N {
                        products[v] = s.float(dots[m][v]);
                    }
                    let weight = weights[head + m] * job.scale * steps[head + m];
                    sums = add_head(s, weight, products, sums);
                }
                head += $m;
            }};
        }
        match n_heads - head {
            8.. if S::TILE_ROWS == 8 => take!(8),
            4.. if S::TILE_ROWS >= 4 => take!(4),
            _ => take!(1),
        }
    }
    for v in 0..N {
        sums[v] = s.mul(sums[v], s.load(&keys.steps[v]));
    }
    sums
}

#[cfg(test)]
mod tests {
    use ds4_model::rounding::index_round_row;
    use ds4_model::{Backend, Place, RopeFrequencies, ScoreTile, SegmentPlace, Shape};

    use super::*;
    use crate::backend::CpuOptions;
    use crate::path::Path;

    /// Scores of two rows by a path; which keys and queries bytes cannot hold depends on `kind`.
    fn scores(path: Path, kind: usize, n_keys: usize) -> Vec<f32> {
        let g = Geometry::flash();
        let options = CpuOptions {
            n_threads: Some(2),
            simd: Some(path),
        };
        let mut cpu = CpuBackend::new(&g, options).expect("an available path");
        let mut image = RowsImage::with_capacity(&g, 2, true);
        let place = SegmentPlace::first(4 * n_keys - 2);
        image.push_segment(&RopeFrequencies::new(&g), place, &[0, 0]);
        let mut rows = cpu.alloc_rows(2).expect("memory");
        cpu.write_rows(&mut rows, &image);

        let mut seed = 7u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut rounded = |n: usize, damaged: &dyn Fn(usize) -> bool| {
            let mut bytes = Vec::new();
            for i in 0..n {
                let mut row: Vec<f32> = (0..g.index_dim).map(|_| random() * 3.0).collect();
                index_round_row(&mut row);
                match (kind, damaged(i)) {
                    // A block far larger than the others, a value between the steps, zeros, and
                    // an outlier that squeezes the rest to nothing.
                    (1, true) => row[..32].iter_mut().for_each(|x| *x *= 1024.0),
                    (2, true) => row[77] = row[77] * 1.25 + 0.37,
                    (3, true) => row.fill(0.0),
                    (4, true) => row[5] = f32::from_bits(0x5000_0000),
                    _ => {}
                }
                bytes.push(row);
            }
            bytes.concat()
        };
        let keys = rounded(n_keys, &|i| i % 37 == 5);
        let queries = rounded(2 * g.n_index_heads, &|i| i == g.n_index_heads + 3);
        let weights: Vec<f32> = (0..2 * g.n_index_heads)
            .map(|i| (i as f32 * 0.7).sin())
            .collect();

        let place = Place { slot: 0, row: 0 };
        let mut fill = |element, shape, bytes: Vec<u8>| {
            let mut buffer = cpu.alloc(element, shape).expect("memory");
            cpu.write(&mut buffer, place, &bytes).expect("memory");
            buffer
        };
        let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let halves = keys
            .iter()
            .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes());
        let width = g.n_index_heads * g.index_dim;
        let cache = fill(
            ElementType::Bf16,
            Shape::rows(n_keys, g.index_dim),
            halves.collect(),
        );
        let iq = fill(ElementType::F32, Shape::rows(2, width), floats(&queries));
        let weights = fill(
            ElementType::F32,
            Shape::rows(2, g.n_index_heads),
            floats(&weights),
        );
        let mut out = fill(ElementType::F32, Shape::rows(2, n_keys), Vec::new());
        let inputs = IndexScores {
            tile: ScoreTile {
                rows: 0..2,
                stride: n_keys,
            },
            queries: &iq,
            weights: &weights,
            cache: &cache,
        };
        cpu.index_scores(&rows, inputs, &mut out);
        if dispatch!(cpu.cpu, has_bytes() -> bool) {
            // The damage is to a head of the second row.
            let steps = &cpu.queries.steps[..2 * g.n_index_heads];
            let (first, second) = steps.split_at(g.n_index_heads);
            assert!(first.iter().all(|s| *s > 0.0), "kind {kind}: {first:?}");
            let suits = [0, 3].contains(&kind);
            assert!(
                second.iter().all(|s| (*s > 0.0) == suits),
                "kind {kind}: {second:?}"
            );
        }
        let first = &out.row(0)[..n_keys - 1];
        [first, out.row(1)].concat()
    }

    /// AVX2 multiplies floats and rounds as AVX-512 does, which multiplies bytes.
    #[test]
    fn scores_of_bytes_are_those_of_floats_bit_for_bit() {
        for kind in 0..5 {
            for n_keys in [1, 15, 33, 300] {
                let expected = scores(Path::Scalar, kind, n_keys);
                for path in [Path::Avx2, Path::Avx512, Path::Neon] {
                    if !path.is_available() {
                        continue;
                    }
                    let found = scores(path, kind, n_keys);
                    if path == Path::Avx512 {
                        assert_eq!(found, scores(Path::Avx2, kind, n_keys), "kind {kind}");
                    }
                    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!(
                            (found - expected).abs() <= 1e-6 * largest,
                            "{path}, kind {kind}, {n_keys} keys: {found} instead of {expected}"
                        );
                    }
                }
            }
        }
    }
}
