use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn hc_pre(rows: &RowsImage, streams: &Buffer, gates: &Buffer, x: &mut Buffer) {
    let n_embd = x.width();
    for r in real(rows) {
        weighted_sum(streams.row(r), gates.row(r), &mut x.row_mut(r)[..n_embd]);
    }
}

/// `out = Σ_j weights[j] * streams[j]`; `weights` may be longer.
pub(super) fn weighted_sum(streams: &[f32], weights: &[f32], out: &mut [f32]) {
    let n_embd = out.len();
    out.fill(0.0);
    for (stream, weight) in streams.chunks_exact(n_embd).zip(weights) {
        for (o, s) in out.iter_mut().zip(stream) {
            *o += weight * s;
        }
    }
}
