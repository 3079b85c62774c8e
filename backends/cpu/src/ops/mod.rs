//! The ops, one file for each, and what they share.

pub(crate) mod add;
pub(crate) mod add_position_bias;
pub(crate) mod attend;
pub(crate) mod choose;
pub(crate) mod compress;
pub(crate) mod embed;
pub(crate) mod experts_down;
pub(crate) mod experts_gate_up;
pub(crate) mod gate_up;
pub(crate) mod hc_gates;
pub(crate) mod hc_head;
pub(crate) mod hc_mix;
pub(crate) mod hc_post;
pub(crate) mod hc_pre;
pub(crate) mod hc_pre_norm;
pub(crate) mod head_norm;
pub(crate) mod index_round;
pub(crate) mod index_scores;
pub(crate) mod kv_norm_rope;
pub(crate) mod kv_round;
pub(crate) mod matmul;
pub(crate) mod matmul_grouped;
pub(crate) mod panel;
pub(crate) mod pool;
pub(crate) mod q_norm_rope;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod route_hash;
pub(crate) mod route_top_k;
pub(crate) mod router_scores;
pub(crate) mod select_rows;
pub(crate) mod store_compressed;
pub(crate) mod store_frontier;
pub(crate) mod store_window;
pub(crate) mod tap;
pub(crate) mod top_k;

use ds4_model::{ElementType, RowsImage};

use crate::buffer::Buffer;
use crate::kernels::RowPair;
use crate::path::Cpu;
use crate::pool::Pool;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

/// Values that make a task worth another thread: some microseconds of an elementwise op.
const TASK_LEN: usize = 32_768;

/// Rows that are not padding.
pub(crate) fn real(rows: &RowsImage) -> impl Iterator<Item = usize> {
    (0..rows.len()).filter(|r| rows.slot(*r).is_some())
}

/// Notes the rows that are not padding.
pub(crate) fn set_real(rows: &RowsImage, out: &mut Vec<RowPair>) {
    out.clear();
    out.extend(real(rows).map(|r| RowPair {
        from: r as u32,
        to: r as u32,
    }));
}

/// Runs `body(row, values)` for every row of `out` that is not padding.
pub(crate) fn each_row<F>(pool: &mut Pool, rows: &RowsImage, out: &mut Buffer, body: F)
where
    F: Fn(usize, &mut [f32]) + Sync,
{
    let width = out.width();
    let values = &mut out.floats_mut()[..rows.len() * width];
    pool.for_chunks(values, TASK_LEN.div_ceil(width) * width, |start, chunk| {
        for (i, values) in chunk.chunks_exact_mut(width).enumerate() {
            let row = start / width + i;
            if rows.slot(row).is_some() {
                body(row, values);
            }
        }
    });
}

/// Runs `body(row, values)` for every head of `head_dim` channels of the rows that are not padding.
pub(crate) fn each_head<F>(
    pool: &mut Pool,
    rows: &RowsImage,
    head_dim: usize,
    x: &mut Buffer,
    body: F,
) where
    F: Fn(usize, &mut [f32]) + Sync,
{
    let width = x.width();
    let values = &mut x.floats_mut()[..rows.len() * width];
    let chunk_len = TASK_LEN.div_ceil(head_dim) * head_dim;
    pool.for_chunks(values, chunk_len, |start, chunk| {
        for (i, head) in chunk.chunks_exact_mut(head_dim).enumerate() {
            let row = (start + i * head_dim) / width;
            if rows.slot(row).is_some() {
                body(row, head);
            }
        }
    });
}

/// `1 / sqrt(mean(x²) + eps)`.
pub(crate) fn inverse_rms(path: Cpu, x: &[f32], eps: f32) -> f32 {
    #[inline(always)]
    fn on<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
        s.inverse_rms(x, eps)
    }
    dispatch!(path, on(x: &[f32], eps: f32) -> f32)
}

/// Writes `values` into a row of a cache from channel `at` on, in the element of the cache.
pub(crate) fn store(
    path: Cpu,
    cache: &mut Buffer,
    slot: usize,
    row: usize,
    at: usize,
    values: &[f32],
) {
    #[inline(always)]
    fn halves<S: Simd>(s: S, values: &[f32], out: &mut [u16]) {
        let (chunks, rest) = values.as_chunks();
        let (out_chunks, out_rest) = out.as_chunks_mut();
        for (x, out) in chunks.iter().zip(out_chunks) {
            s.store_bf16(s.load(x), out);
        }
        let mut last = [0; LANES];
        s.store_bf16(s.load_part(rest), &mut last);
        out_rest.copy_from_slice(&last[..rest.len()]);
    }
    let start = cache.index(slot, row).start + at;
    match cache.element() {
        ElementType::Bf16 => {
            let out = &mut cache.halves_mut()[start..][..values.len()];
            dispatch!(path, halves(values: &[f32], out: &mut [u16]));
        }
        _ => cache.floats_mut()[start..][..values.len()].copy_from_slice(values),
    }
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
