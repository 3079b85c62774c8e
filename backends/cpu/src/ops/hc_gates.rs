use ds4_model::RowsImage;
use ds4_model::weights::HyperConnection;

use super::elementwise::inverse_rms;
use super::matmul::matmul;
use super::{each_row, sigmoid};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

/// One product with all streams, then the gates row by row.
pub(crate) fn hc_gates(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    gates: &mut Buffer,
) {
    matmul(cpu, rows, &hc.fn_, streams, gates);
    let geometry = &cpu.geometry;
    let path = cpu.cpu;
    each_row(&mut cpu.pool, rows, gates, |r, gates| {
        let inv = inverse_rms(path, streams.row(r), geometry.rms_eps);
        finish(geometry, hc, inv, gates);
    });
}

/// Turns the products of a row into its gates.
fn finish(geometry: &ds4_model::Geometry, hc: &HyperConnection<Weight>, inv: f32, g: &mut [f32]) {
    let (n, eps) = (geometry.n_hc, geometry.hc_eps);
    let (base, scale) = (hc.base.vector(), hc.scale.vector());
    for j in 0..n {
        g[j] = sigmoid(g[j] * inv * scale[0] + base[j]) + eps;
        g[n + j] = 2.0 * sigmoid(g[n + j] * inv * scale[1] + base[n + j]);
    }
    for i in 2 * n..n * (2 + n) {
        g[i] = g[i] * inv * scale[2] + base[i];
    }
    sinkhorn(&mut g[2 * n..], n, geometry.n_sinkhorn, eps);
}

/// Makes `c`, `[n source, n destination]`, nearly doubly stochastic: a softmax along the destination
/// and a column normalisation, then both normalisations `n_steps - 1` times.
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
