//! The ops, one file for each, and what they share.

pub(crate) mod add;
pub(crate) mod add_position_bias;
pub(crate) mod attend;
pub(crate) mod embed;
pub(crate) mod experts_down;
pub(crate) mod experts_gate_up;
pub(crate) mod gate_up;
pub(crate) mod hc_gates;
pub(crate) mod hc_head;
pub(crate) mod hc_post;
pub(crate) mod hc_pre;
pub(crate) mod head_norm;
pub(crate) mod index_round;
pub(crate) mod index_scores;
pub(crate) mod kv_round;
pub(crate) mod matmul;
pub(crate) mod matmul_grouped;
pub(crate) mod pool;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod route_hash;
pub(crate) mod route_top_k;
pub(crate) mod router_scores;
pub(crate) mod select_rows;
pub(crate) mod store_compressed;
pub(crate) mod store_frontier;
pub(crate) mod store_window;
pub(crate) mod top_k;

use ds4_formats::small_float::bf16_to_f32;
use ds4_model::RowsImage;

use crate::buffer::{Buffer, CacheRow};
use crate::kernels::RowPair;
use crate::pool::Pool;

/// Values that make a task worth another thread: about a microsecond of an elementwise op.
const TASK_LEN: usize = 4096;

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

/// Sum of products in sixteen partial sums.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Reciprocal of the root of the mean square.
pub(crate) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Decodes cache rows one at a time.
pub(crate) struct CacheFloats(Vec<f32>);

impl CacheFloats {
    pub(crate) fn new(width: usize) -> CacheFloats {
        CacheFloats(vec![0.0; width])
    }

    /// The values of a row, valid until the next.
    pub(crate) fn get<'a>(&'a mut self, row: CacheRow<'a>) -> &'a [f32] {
        match row {
            CacheRow::F32(row) => row,
            CacheRow::Bf16(row) => {
                for (x, half) in self.0.iter_mut().zip(row) {
                    *x = bf16_to_f32(*half);
                }
                &self.0
            }
        }
    }
}
