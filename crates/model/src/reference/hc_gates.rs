use super::{Buffer, Weight, dot, mean_square, real, sigmoid};
use crate::geometry::Geometry;
use crate::rows::RowsImage;
use crate::weights::HyperConnection;

/// `(fn · v) * rsqrt(mean(v²) + eps)` for every row of `fn`.
pub(super) fn mix(eps: f32, hc: &HyperConnection<Weight>, v: &[f32], out: &mut [f32]) {
    let inv = 1.0 / (mean_square(v) + eps).sqrt();
    let mut w = vec![0.0; v.len()];
    for (i, mix) in out.iter_mut().enumerate() {
        hc.fn_.decode(i, &mut w);
        *mix = dot(&w, v) * inv;
    }
}

pub(super) fn hc_gates(
    geometry: &Geometry,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    gates: &mut Buffer,
) {
    let (n, eps) = (geometry.n_hc, geometry.hc_eps);
    let (base, scale) = (hc.base.vector(), hc.scale.vector());
    for r in real(rows) {
        let g = gates.row_mut(r);
        mix(geometry.rms_eps, hc, streams.row(r), g);
        for j in 0..n {
            g[j] = sigmoid(g[j] * scale[0] + base[j]) + eps;
            g[n + j] = 2.0 * sigmoid(g[n + j] * scale[1] + base[n + j]);
        }
        for i in 2 * n..n * (2 + n) {
            g[i] = g[i] * scale[2] + base[i];
        }
        sinkhorn(&mut g[2 * n..], n, geometry.n_sinkhorn, eps);
    }
}

/// Makes `c`, `[n source, n destination]`, nearly doubly stochastic: a softmax
/// along the destination and a column normalisation, then both normalisations
/// `n_steps - 1` times. Columns are normalised last.
fn sinkhorn(c: &mut [f32], n: usize, n_steps: usize, eps: f32) {
    for row in c.chunks_exact_mut(n) {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        for x in row.iter_mut() {
            *x = (*x - max).exp();
        }
        let sum: f32 = row.iter().sum();
        for x in row {
            *x = *x / sum + eps;
        }
    }
    normalise_columns(c, n, eps);
    for _ in 1..n_steps {
        for row in c.chunks_exact_mut(n) {
            let sum: f32 = row.iter().sum();
            for x in row {
                *x /= sum + eps;
            }
        }
        normalise_columns(c, n, eps);
    }
}

fn normalise_columns(c: &mut [f32], n: usize, eps: f32) {
    for k in 0..n {
        let sum: f32 = (0..n).map(|j| c[j * n + k]).sum();
        for j in 0..n {
            c[j * n + k] /= sum + eps;
        }
    }
}
