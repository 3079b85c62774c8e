use std::ops::Range;

use ds4_model::{Attend, CompressedRows, Geometry, RowsImage};

use super::panel::{Onto, PANEL_VECTORS, Rows, Target, add_products, fill_columns, fill_rows};
use crate::backend::CpuBackend;
use crate::buffer::{Buffer, Cache};
use crate::memory::Aligned;
use crate::path::Cpu;
use crate::pool::Spread;
use crate::simd::{LANES, Simd, SimdExt, dispatch, map};
use crate::weight::Weight;

/// Attended rows whose scores are held at a time; the softmax of more is carried from chunk to
/// chunk. A window of 128 with 512 selected rows is one chunk.
const CHUNK: usize = 640;
/// Heads whose softmax is one task of a step of few rows.
const SOFTMAX_HEADS: usize = 8;

/// Scratch: for each thread the scores of a row's heads, `[n_heads, CHUNK]`, and for each head the
/// largest score so far, the sum of the exponentials, and the factor that scales what was summed
/// before the current chunk.
#[derive(Debug)]
pub(crate) struct Attention {
    values: Aligned<f32>,
    n_heads: usize,
}

impl Attention {
    /// `None` when there is no memory.
    pub(crate) fn new(geometry: &Geometry, n_threads: usize) -> Option<Attention> {
        let n_heads = geometry.n_heads;
        let len = n_heads.checked_mul(CHUNK + 3)?.checked_mul(n_threads)?;
        Some(Attention {
            values: Aligned::new(len)?,
            n_heads,
        })
    }
}

/// The scratch of one row.
#[derive(Clone, Copy)]
struct Own<'a> {
    values: &'a Spread<'a, f32>,
    start: usize,
    n_heads: usize,
}

impl<'a> Own<'a> {
    fn of(values: &'a Spread<'a, f32>, n_heads: usize, place: usize) -> Own<'a> {
        Own {
            values,
            start: place * n_heads * (CHUNK + 3),
            n_heads,
        }
    }

    fn score_index(&self, head: usize) -> usize {
        self.start + head * CHUNK
    }

    /// Where one of the three numbers of a head is.
    fn number_index(&self, which: usize, head: usize) -> usize {
        self.start + (CHUNK + which) * self.n_heads + head
    }

    /// One of the numbers of a head.
    ///
    /// # Safety
    ///
    /// Nobody else uses it meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn number(&self, which: usize, head: usize) -> &'a mut f32 {
        // SAFETY: the caller's promise.
        unsafe { &mut self.values.slice(self.number_index(which, head), 1)[0] }
    }
}

const LARGEST: usize = 0;
const SUM: usize = 1;
const FACTOR: usize = 2;

pub(crate) fn attend(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    inputs: &Attend<'_, Buffer, Weight>,
    out: &mut Buffer,
) {
    let out_width = out.width();
    let out = Spread::new(out.floats_mut());
    let job = Job {
        geometry: &cpu.geometry,
        rows,
        q: inputs.q,
        kv: inputs.kv,
        ring: inputs.ring,
        compressed: &inputs.compressed,
        sinks: inputs.sinks.vector(),
        out: &out,
        out_width,
    };
    let (path, n_heads) = (cpu.cpu, cpu.attention.n_heads);
    let pool = &mut cpu.pool;
    let n_threads = pool.n_threads();
    let scratch = Spread::new(&mut cpu.attention.values);
    if n_threads == 1 || rows.len() >= 2 * n_threads {
        pool.run(rows.len(), |r, worker| {
            if rows.slot(r).is_some() {
                job.whole_row(path, r, Own::of(&scratch, n_heads, worker));
            }
        });
        return;
    }
    // Few rows: as many at a time as there are places in the scratch, each divided among threads.
    for first in (0..rows.len()).step_by(n_threads) {
        let group = first..(first + n_threads).min(rows.len());
        let own = |r: usize| Own::of(&scratch, n_heads, r - group.start);
        let is_real = |r: usize| rows.slot(r).is_some();
        let n_chunks = group.clone().filter(|r| is_real(*r)).map(|r| {
            let attended = job.attended(r);
            attended.len.div_ceil(CHUNK)
        });
        let n_chunks = n_chunks.max().unwrap_or(0);
        for r in group.clone() {
            job.begin(own(r));
        }
        let (width, dim) = (panel_width(path), cpu.geometry.head_dim);
        let (n_blocks, n_strips) = (CHUNK.div_ceil(width), dim.div_ceil(width));
        let n_softmax = n_heads.div_ceil(SOFTMAX_HEADS);
        // Parts of the heads, so that every thread finds something to do.
        let n_parts = (2 * n_threads).div_ceil(group.len() * n_strips);
        let part_len = n_heads.div_ceil(n_parts).next_multiple_of(8);
        let n_parts = n_heads.div_ceil(part_len);
        for chunk in 0..n_chunks {
            // The rows of the group to which the chunk belongs, and it, cut to their length.
            let piece = |r: usize| {
                let attended = job.attended(r);
                let end = ((chunk + 1) * CHUNK).min(attended.len);
                (is_real(r) && chunk * CHUNK < attended.len).then(|| (attended, chunk * CHUNK..end))
            };
            pool.run(group.len() * n_blocks, |task, _| {
                let r = group.start + task / n_blocks;
                if let Some((attended, chunk)) = piece(r) {
                    let first = chunk.start + task % n_blocks * width;
                    let block = first..(first + width).min(chunk.end);
                    if !block.is_empty() {
                        job.scores(path, r, &attended, &chunk, block, 0..n_heads, own(r));
                    }
                }
            });
            pool.run(group.len() * n_softmax, |task, _| {
                let r = group.start + task / n_softmax;
                if let Some((_, chunk)) = piece(r) {
                    let first = task % n_softmax * SOFTMAX_HEADS;
                    let heads = first..(first + SOFTMAX_HEADS).min(n_heads);
                    job.softmax(path, chunk.len(), heads, own(r));
                }
            });
            pool.run(group.len() * n_strips * n_parts, |task, _| {
                let (task, part) = (task / n_parts, task % n_parts);
                let r = group.start + task / n_strips;
                if let Some((attended, chunk)) = piece(r) {
                    let first = task % n_strips * width;
                    let channels = first..(first + width).min(dim);
                    let heads = part * part_len..((part + 1) * part_len).min(n_heads);
                    job.sums(path, r, &attended, &chunk, channels, heads, own(r));
                }
            });
        }
    }
}

/// Columns of a panel.
fn panel_width(path: Cpu) -> usize {
    #[inline(always)]
    fn on<S: Simd>(_: S) -> usize {
        S::TILE_VECTORS * LANES
    }
    dispatch!(path, on() -> usize)
}

struct Job<'a> {
    geometry: &'a Geometry,
    rows: &'a RowsImage,
    q: &'a Buffer,
    kv: &'a Buffer,
    ring: &'a Buffer,
    compressed: &'a CompressedRows<'a, Buffer>,
    sinks: &'a [f32],
    out: &'a Spread<'a, f32>,
    out_width: usize,
}

/// The rows that a query attends to: window rows in order of position, then compressed rows. Recent
/// tokens stand in both; they are not de-duplicated.
#[derive(Clone, Copy)]
struct Attended<'a> {
    /// Number of rows.
    len: usize,
    dim: usize,
    /// Position of the first window row.
    window_start: usize,
    /// Position from which on rows are those of the batch.
    batch_start: usize,
    /// One past the last position that the query sees.
    window_end: usize,
    /// Row of the batch at `batch_start`.
    first_row: usize,
    n_ring: usize,
    kv: Cache<'a>,
    ring: Cache<'a>,
    compressed: Option<Cache<'a>>,
    selected: Option<&'a [u32]>,
}

impl<'a> Attended<'a> {
    #[inline(always)]
    fn row(&self, i: usize) -> Cache<'a> {
        let position = self.window_start + i;
        if position >= self.window_end {
            let i = position - self.window_end;
            let i = self.selected.map_or(i, |selected| selected[i] as usize);
            match self.compressed {
                Some(cache) => cache.row(self.dim, i),
                None => unreachable!("a row after the window of a sliding layer"),
            }
        } else if position >= self.batch_start {
            self.kv
                .row(self.dim, self.first_row + (position - self.batch_start))
        } else {
            self.ring.row(self.dim, position % self.n_ring)
        }
    }
}

impl Job<'_> {
    fn attended(&self, r: usize) -> Attended<'_> {
        let rows = self.rows;
        let Some(slot) = rows.slot(r) else {
            // Padding attends to nothing.
            return Attended {
                len: 0,
                dim: self.geometry.head_dim,
                window_start: 0,
                batch_start: 0,
                window_end: 0,
                first_row: 0,
                n_ring: 1,
                kv: self.kv.slot(0),
                ring: self.ring.slot(0),
                compressed: None,
                selected: None,
            };
        };
        // One past the last visible row of the batch, as a position.
        let n_seen = rows.see_end[r] - rows.first_row[r];
        let window_end = rows.segment_position(r) + n_seen as usize;
        let window_start = rows.window_start[r] as usize;
        let (n_compressed, compressed, selected) = match self.compressed {
            CompressedRows::None => (0, None, None),
            CompressedRows::All { cache, ratio } => {
                let rows_of_slot = cache.rows_from(rows.first_compressed(r, *ratio));
                (rows.n_visible(r, *ratio), Some(rows_of_slot), None)
            }
            CompressedRows::Selected {
                cache,
                ratio,
                selected,
            } => {
                let ids = selected.id_row(r);
                let n = rows.n_visible(r, *ratio).min(ids.len());
                let rows_of_slot = cache.rows_from(rows.first_compressed(r, *ratio));
                (n, Some(rows_of_slot), Some(ids))
            }
        };
        Attended {
            len: window_end - window_start + n_compressed,
            dim: self.geometry.head_dim,
            window_start,
            batch_start: rows.segment_position(r),
            window_end,
            first_row: rows.first_row[r] as usize,
            n_ring: self.ring.n_rows(),
            kv: self.kv.slot(0),
            ring: self.ring.slot(slot),
            compressed,
            selected,
        }
    }

    /// Nothing but the sink was seen.
    fn begin(&self, own: Own<'_>) {
        for (head, sink) in self.sinks.iter().enumerate() {
            // SAFETY: the row's scratch is not in use yet.
            unsafe {
                *own.number(LARGEST, head) = *sink;
                *own.number(SUM, head) = 1.0;
            }
        }
    }

    fn whole_row(&self, path: Cpu, r: usize, own: Own<'_>) {
        let attended = self.attended(r);
        self.begin(own);
        let (width, dim) = (panel_width(path), self.geometry.head_dim);
        let n_heads = self.geometry.n_heads;
        for start in (0..attended.len).step_by(CHUNK) {
            let chunk = start..(start + CHUNK).min(attended.len);
            for first in chunk.clone().step_by(width) {
                let block = first..(first + width).min(chunk.end);
                self.scores(path, r, &attended, &chunk, block, 0..n_heads, own);
            }
            self.softmax(path, chunk.len(), 0..n_heads, own);
            for first in (0..dim).step_by(width) {
                let channels = first..(first + width).min(dim);
                self.sums(path, r, &attended, &chunk, channels, 0..n_heads, own);
            }
        }
    }

    /// The products of a row's queries with a block of attended rows, which is at most as long as a
    /// panel is wide.
    fn scores(
        &self,
        path: Cpu,
        r: usize,
        attended: &Attended<'_>,
        chunk: &Range<usize>,
        block: Range<usize>,
        heads: Range<usize>,
        own: Own<'_>,
    ) {
        let dim = self.geometry.head_dim;
        let q = &self.q.row(r)[heads.start * dim..heads.end * dim];
        let out = Target {
            values: own.values,
            start: own.score_index(heads.start) + (block.start - chunk.start),
            stride: CHUNK,
            n_columns: panel_width(path).min(CHUNK - (block.start - chunk.start)),
        };
        dispatch!(
            path,
            scores(attended: &Attended<'_>, block: Range<usize>, q: &[f32], out: Target<'_>)
        );
    }

    /// Turns the scores of a chunk of `len` rows into exponentials.
    fn softmax(&self, path: Cpu, len: usize, heads: Range<usize>, own: Own<'_>) {
        let scale = (self.geometry.head_dim as f32).powf(-0.5);
        dispatch!(path, softmax(len: usize, scale: f32, heads: Range<usize>, own: Own<'_>));
    }

    /// Adds a chunk's rows, weighted by their exponentials, to some channels of some heads of the
    /// output, and after the last chunk divides by the sum of all exponentials.
    fn sums(
        &self,
        path: Cpu,
        r: usize,
        attended: &Attended<'_>,
        chunk: &Range<usize>,
        channels: Range<usize>,
        heads: Range<usize>,
        own: Own<'_>,
    ) {
        let dim = self.geometry.head_dim;
        let out = Target {
            values: self.out,
            start: r * self.out_width + heads.start * dim + channels.start,
            stride: dim,
            n_columns: channels.len(),
        };
        dispatch!(
            path,
            sums(
                attended: &Attended<'_>, chunk: &Range<usize>, channels: Range<usize>,
                heads: Range<usize>, own: Own<'_>, out: Target<'_>,
            )
        );
    }
}

#[inline(always)]
fn scores<S: Simd>(s: S, attended: &Attended<'_>, block: Range<usize>, q: &[f32], out: Target<'_>) {
    match S::TILE_VECTORS {
        2 => scores_on::<S, 2>(s, attended, block, q, out),
        _ => scores_on::<S, 1>(s, attended, block, q, out),
    }
}

#[inline(always)]
fn scores_on<S: Simd, const N: usize>(
    s: S,
    attended: &Attended<'_>,
    block: Range<usize>,
    q: &[f32],
    out: Target<'_>,
) {
    let dim = attended.dim;
    let mut panel = [[0.0; LANES]; PANEL_VECTORS];
    for start in (0..dim).step_by(PANEL_VECTORS / N) {
        let channels = start..(start + PANEL_VECTORS / N).min(dim);
        let depth = channels.len();
        fill_columns::<S, N>(s, block.clone(), |i| attended.row(i), channels, &mut panel);
        let q = Rows {
            values: &q[start..],
            stride: dim,
            n_rows: q.len() / dim,
            depth,
        };
        let onto = if start == 0 { Onto::Zero } else { Onto::Kept };
        // SAFETY: tasks own different blocks of the scores.
        unsafe { add_products::<S, N>(s, q, &panel, onto, out) };
    }
}

#[inline(always)]
fn softmax<S: Simd>(s: S, len: usize, scale: f32, heads: Range<usize>, own: Own<'_>) {
    for head in heads {
        // SAFETY: tasks own different heads.
        let (scores, largest, sum, factor) = unsafe {
            (
                own.values.slice(own.score_index(head), CHUNK),
                own.number(LARGEST, head),
                own.number(SUM, head),
                own.number(FACTOR, head),
            )
        };
        let padded = len.next_multiple_of(LANES).min(CHUNK);
        scores[len..padded].fill(f32::NEG_INFINITY);
        let (vectors, _) = scores[..padded].as_chunks_mut::<LANES>();
        let mut max = s.splat(f32::NEG_INFINITY);
        for z in vectors.iter() {
            max = s.max(s.load(z), max);
        }
        let max = (s.largest(max) * scale).max(*largest);
        *factor = (*largest - max).exp();
        *largest = max;
        let (scale, shift) = (s.splat(scale), s.splat(-max));
        let mut total = s.zero();
        for z in vectors {
            let p = s.exp(s.fma(s.load(z), scale, shift));
            total = s.add(total, p);
            s.store(p, z);
        }
        *sum = *sum * *factor + s.sum(total);
    }
}

#[inline(always)]
fn sums<S: Simd>(
    s: S,
    attended: &Attended<'_>,
    chunk: &Range<usize>,
    channels: Range<usize>,
    heads: Range<usize>,
    own: Own<'_>,
    out: Target<'_>,
) {
    match S::TILE_VECTORS {
        2 => sums_on::<S, 2>(s, attended, chunk, channels, heads, own, out),
        _ => sums_on::<S, 1>(s, attended, chunk, channels, heads, own, out),
    }
}

#[inline(always)]
fn sums_on<S: Simd, const N: usize>(
    s: S,
    attended: &Attended<'_>,
    chunk: &Range<usize>,
    channels: Range<usize>,
    heads: Range<usize>,
    own: Own<'_>,
    out: Target<'_>,
) {
    let (values, head) = (own.values, heads.start);
    // SAFETY: the scores and the numbers of these heads are complete, and only read now.
    let (p, sum, factor) = unsafe {
        (
            values.view(own.score_index(head), heads.len() * CHUNK),
            values.view(own.number_index(SUM, head), heads.len()),
            values.view(own.number_index(FACTOR, head), heads.len()),
        )
    };
    let mut panel = [[0.0; LANES]; PANEL_VECTORS];
    for start in chunk.clone().step_by(PANEL_VECTORS / N) {
        let depth = start..(start + PANEL_VECTORS / N).min(chunk.end);
        let p = Rows {
            values: &p[start - chunk.start..],
            stride: CHUNK,
            n_rows: heads.len(),
            depth: depth.len(),
        };
        fill_rows::<S, N>(s, depth, |i| attended.row(i), channels.clone(), &mut panel);
        let onto = if start > chunk.start {
            Onto::Kept
        } else if chunk.start > 0 {
            Onto::Scaled(factor)
        } else {
            Onto::Zero
        };
        // SAFETY: tasks own different channels of different heads of different rows.
        unsafe { add_products::<S, N>(s, p, &panel, onto, out) };
    }
    if chunk.end == attended.len {
        for (head, sum) in sum.iter().enumerate() {
            // SAFETY: as above.
            let out = unsafe {
                out.values
                    .slice(out.start + head * out.stride, out.n_columns)
            };
            let inverse = s.splat(1.0 / sum);
            map!(s, out, |x| s.mul(x, inverse));
        }
    }
}
