use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{LANES, Simd, SimdExt, dispatch, zip};

pub(crate) fn hc_pre(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    gates: &Buffer,
    x: &mut Buffer,
) {
    let (path, n_hc) = (cpu.cpu, cpu.geometry.n_hc);
    each_row(&mut cpu.pool, rows, x, |r, x| {
        let (streams, weights) = (streams.row(r), &gates.row(r)[..n_hc]);
        dispatch!(path, weighted_sum(streams: &[f32], weights: &[f32], x: &mut [f32]));
    });
}

/// `out = Σ_j weights[j] * streams[j]`.
#[inline(always)]
pub(crate) fn weighted_sum<S: Simd>(s: S, streams: &[f32], weights: &[f32], out: &mut [f32]) {
    let n_embd = out.len();
    match weights {
        // The usual number of streams, in one pass.
        &[a, b, c, d] => {
            let (a, b, c, d) = (s.splat(a), s.splat(b), s.splat(c), s.splat(d));
            let [x0, x1, x2, x3] = [0, 1, 2, 3].map(|j| &streams[j * n_embd..][..n_embd]);
            for (i, out) in out.chunks_mut(LANES).enumerate() {
                let at = i * LANES..i * LANES + out.len();
                let sum = s.mul(a, s.load_part(&x0[at.clone()]));
                let sum = s.fma(b, s.load_part(&x1[at.clone()]), sum);
                let sum = s.fma(c, s.load_part(&x2[at.clone()]), sum);
                let sum = s.fma(d, s.load_part(&x3[at]), sum);
                s.store_part(sum, out);
            }
        }
        _ => {
            out.fill(0.0);
            for (stream, weight) in streams.chunks_exact(n_embd).zip(weights) {
                let weight = s.splat(*weight);
                zip!(s, out, stream, |out, x| s.fma(weight, x, out));
            }
        }
    }
}
