use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch};

pub(crate) fn hc_pre(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    gates: &Buffer,
    x: &mut Buffer,
) {
    let (path, n_hc) = (cpu.cpu.path(), cpu.geometry.n_hc);
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
            let stream = |j: usize| streams[j * n_embd..][..n_embd].as_chunks();
            let ((x0, t0), (x1, t1)) = (stream(0), stream(1));
            let ((x2, t2), (x3, t3)) = (stream(2), stream(3));
            let sum = |x0, x1, x2, x3| {
                let sum = s.fma(b, x1, s.mul(a, x0));
                s.fma(d, x3, s.fma(c, x2, sum))
            };
            let (chunks, rest) = out.as_chunks_mut();
            for (i, out) in chunks.iter_mut().enumerate() {
                let sum = sum(
                    s.load(&x0[i]),
                    s.load(&x1[i]),
                    s.load(&x2[i]),
                    s.load(&x3[i]),
                );
                s.store(sum, out);
            }
            let part = |t| s.load_part(t);
            s.store_part(sum(part(t0), part(t1), part(t2), part(t3)), rest);
        }
        _ => {
            out.fill(0.0);
            for (stream, weight) in streams.chunks_exact(n_embd).zip(weights) {
                let weight = s.splat(*weight);
                s.zip(out, stream, |out, x| s.fma(weight, x, out));
            }
        }
    }
}
