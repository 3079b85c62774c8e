//! The ops, one file for each, and what they share.

pub(crate) mod add;
pub(crate) mod add_position_bias;
pub(crate) mod attend;
pub(crate) mod elementwise;
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

use ds4_model::RowsImage;

use crate::buffer::Buffer;
use crate::kernels::RowPair;
use crate::pool::Pool;

/// Values that make a task worth another thread: about a microsecond of an elementwise op.
pub(crate) const TASK_LEN: usize = 4096;

/// The most residual streams; as many as a geometry may have.
pub(crate) const MAX_STREAMS: usize = 16;

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

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
