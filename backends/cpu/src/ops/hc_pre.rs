use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn hc_pre(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    gates: &Buffer,
    x: &mut Buffer,
) {
    each_row(&mut cpu.pool, rows, x, |r, x| {
        weighted_sum(streams.row(r), gates.row(r), x);
    });
}

/// `out = Σ_j weights[j] * streams[j]`; `weights` may be longer.
pub(crate) fn weighted_sum(streams: &[f32], weights: &[f32], out: &mut [f32]) {
    let n_embd = out.len();
    out.fill(0.0);
    for (stream, weight) in streams.chunks_exact(n_embd).zip(weights) {
        for (o, s) in out.iter_mut().zip(stream) {
            *o += weight * s;
        }
    }
}
