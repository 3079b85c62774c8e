//! The products of the streams with a hyper-connection's matrix, which `hc_gates`, `hc_pre_norm` and
//! `hc_head` begin with.

use std::ops::Range;

use ds4_model::RowsImage;

use crate::buffer::Buffer;
use crate::path::Path;
use crate::pool::{Pool, Spread};
use crate::simd::{LANES, Lanes, Simd, SimdExt, dispatch};
use crate::weight::{Bf16, F16, Floats, Weight};

/// Rows of a step that share one reading of the weights.
const BLOCK_ROWS: usize = 4;
/// Products of a row that are taken together.
const BLOCK_OUTPUTS: usize = 3;

/// Writes `fn[i] · v` for every row's streams `v` and every `i` to `out`, `[n_rows, n_out]`, and runs
/// `finish(row, products)` on each row that is not padding.
///
/// A step of few rows is divided by products, because the weights are what must be read; one of
/// many rows is divided by rows, and a row is finished while its streams are at hand.
pub(crate) fn mix<F>(
    path: Path,
    pool: &mut Pool,
    scratch: &mut [Vec<f32>],
    rows: &RowsImage,
    streams: &Buffer,
    weight: &Weight,
    out: &mut [f32],
    finish: F,
) where
    F: Fn(usize, &mut [f32]) + Sync,
{
    let (n_rows, n_out) = (rows.len(), weight.n_out());
    let n_blocks = n_rows.div_ceil(BLOCK_ROWS);
    let whole = n_blocks >= pool.n_threads();
    let part_len = if whole { n_out } else { BLOCK_OUTPUTS };
    let n_parts = n_out.div_ceil(part_len);
    let out = Spread::new(&mut out[..n_rows * n_out]);
    let finish = |row: usize| {
        if rows.slot(row).is_some() {
            // SAFETY: one task finishes a row, after the tasks that wrote its products.
            finish(row, unsafe { out.slice(row * n_out, n_out) });
        }
    };
    pool
        .run_with(scratch, n_blocks * n_parts, |task, scratch| {
            let first = task / n_parts * BLOCK_ROWS;
            let block = first..(first + BLOCK_ROWS).min(n_rows);
            let part = task % n_parts * part_len;
            let part = part..(part + part_len).min(n_out);
            let job = Job {
                streams,
                weight,
                out: &out,
            };
            let (job, scratch) = (&job, &mut *scratch);
            {
                let block = block.clone();
                dispatch!(
                    path,
                    products(job: &Job<'_>, block: Range<usize>, part: Range<usize>, scratch: &mut Vec<f32>)
                );
            }
            if whole {
                block.for_each(&finish);
            }
        });
    if !whole {
        pool.run(n_rows, |row, _| finish(row));
    }
}

struct Job<'a> {
    streams: &'a Buffer,
    weight: &'a Weight,
    out: &'a Spread<'a, f32>,
}

#[inline(always)]
fn products<S: Simd>(
    s: S,
    job: &Job<'_>,
    rows: Range<usize>,
    outputs: Range<usize>,
    scratch: &mut Vec<f32>,
) {
    let n_in = job.weight.n_in();
    match job.weight.float_rows() {
        Some(Floats::F32(weights)) => typed(s, job, weights, rows, outputs),
        Some(Floats::F16(weights)) => typed(s, job, weights, rows, outputs),
        Some(Floats::Bf16(weights)) => typed(s, job, weights, rows, outputs),
        None => {
            scratch.resize(n_in.max(scratch.len()), 0.0);
            for output in outputs {
                let decoded = &mut scratch[..n_in];
                job.weight.decode(output, decoded);
                for row in rows.clone() {
                    let [[product]] = dots(s, [job.streams.row(row)], [&*decoded]);
                    // SAFETY: tasks own different outputs of different rows.
                    unsafe { job.out.slice(row * job.weight.n_out() + output, 1)[0] = product };
                }
            }
        }
    }
}

#[inline(always)]
fn typed<S: Simd, E: Element>(
    s: S,
    job: &Job<'_>,
    weights: &[E],
    rows: Range<usize>,
    outputs: Range<usize>,
) {
    let n_in = job.weight.n_in();
    let weight = |output: usize| &weights[output * n_in..][..n_in];
    let mut output = outputs.start;
    while output < outputs.end {
        let n = BLOCK_OUTPUTS.min(outputs.end - output);
        // Registers for a block of rows are there only where vectors are long.
        let n_rows = if S::TILE_ROWS == 8 { BLOCK_ROWS } else { 1 };
        let mut row = rows.start;
        while row < rows.end {
            // SAFETY: tasks own different outputs of different rows.
            let out = |row: usize| unsafe { job.out.slice(row * job.weight.n_out() + output, n) };
            if n == BLOCK_OUTPUTS && n_rows == BLOCK_ROWS && rows.end - row >= BLOCK_ROWS {
                let v = std::array::from_fn(|i| job.streams.row(row + i));
                let w = std::array::from_fn(|i| weight(output + i));
                let sums: [[f32; BLOCK_OUTPUTS]; BLOCK_ROWS] = dots(s, v, w);
                for (i, sums) in sums.iter().enumerate() {
                    out(row + i).copy_from_slice(sums);
                }
                row += BLOCK_ROWS;
            } else {
                let v = [job.streams.row(row)];
                if n == BLOCK_OUTPUTS {
                    let w = std::array::from_fn(|i| weight(output + i));
                    let [sums]: [[f32; BLOCK_OUTPUTS]; 1] = dots(s, v, w);
                    out(row).copy_from_slice(&sums);
                } else {
                    for i in 0..n {
                        let [[sum]] = dots(s, v, [weight(output + i)]);
                        out(row)[i] = sum;
                    }
                }
                row += 1;
            }
        }
        output += n;
    }
}

/// An element of a matrix that is multiplied in f32.
pub(crate) trait Element: Copy + Default {
    fn load<S: Simd>(s: S, x: &Lanes<Self>) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &Lanes<f32>) -> S::F {
        s.load(x)
    }
}

impl Element for F16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &Lanes<F16>) -> S::F {
        s.load_f16(&x.map(|x| x.0))
    }
}

impl Element for Bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &Lanes<Bf16>) -> S::F {
        s.load_bf16(&x.map(|x| x.0))
    }
}

/// Every product of a row of `v` with a row of `w`, each in two alternating vectors of partial
/// sums, so that a product does not depend on what it is computed with.
#[inline(always)]
fn dots<S: Simd, E: Element, const R: usize, const O: usize>(
    s: S,
    v: [&[f32]; R],
    w: [&[E]; O],
) -> [[f32; O]; R] {
    let len = v[0].len();
    let mut sums = [[[s.zero(); 2]; O]; R];
    let v_chunks = v.map(|v| v[..len].as_chunks::<LANES>());
    let w_chunks = w.map(|w| w[..len].as_chunks::<LANES>());
    let n_chunks = len / LANES;
    for pair in 0..n_chunks / 2 {
        for half in 0..2 {
            let i = 2 * pair + half;
            for o in 0..O {
                let w = E::load(s, &w_chunks[o].0[i]);
                for r in 0..R {
                    sums[r][o][half] = s.fma(s.load(&v_chunks[r].0[i]), w, sums[r][o][half]);
                }
            }
        }
    }
    let last = n_chunks - n_chunks % 2;
    let mut out = [[0.0; O]; R];
    for r in 0..R {
        for o in 0..O {
            if last < n_chunks {
                let (v, w) = (&v_chunks[r].0[last], &w_chunks[o].0[last]);
                sums[r][o][0] = s.fma(s.load(v), E::load(s, w), sums[r][o][0]);
            }
            let (v_rest, w_rest) = (v_chunks[r].1, w_chunks[o].1);
            if !v_rest.is_empty() {
                let mut w = [E::default(); LANES];
                w[..w_rest.len()].copy_from_slice(w_rest);
                let v = s.load_part(v_rest);
                sums[r][o][1] = s.fma(v, E::load(s, &w), sums[r][o][1]);
            }
            out[r][o] = s.sum(s.add(sums[r][o][0], sums[r][o][1]));
        }
    }
    out
}
