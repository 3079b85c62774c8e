use ds4_model::weights::HyperConnection;
use ds4_model::{Geometry, RowsImage};

use super::hc_mix::{Means, mix};
use super::{inverse_rms, sigmoid};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn hc_gates(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    gates: &mut Buffer,
) {
    let (path, geometry) = (cpu.cpu, &cpu.geometry);
    let means = Means {
        cpu: path,
        pool: &mut cpu.pool,
        workers: &mut cpu.workers,
        activations: &mut cpu.activations,
    };
    mix(
        means,
        rows,
        streams,
        &hc.fn_,
        gates.floats_mut(),
        |r, gates| {
            let inv = inverse_rms(path, streams.row(r), geometry.rms_eps);
            finish_gates(geometry, hc, inv, gates);
        },
    );
}

/// Turns the products of a row, not yet divided by its root mean square, into its gates.
pub(crate) fn finish_gates(
    geometry: &Geometry,
    hc: &HyperConnection<Weight>,
    inv: f32,
    g: &mut [f32],
) {
    let (n, eps) = (geometry.n_hc, geometry.hc_eps);
    let (base, scale) = (hc.base.vector(), hc.scale.vector());
    for (g, base) in g[..n].iter_mut().zip(base) {
        *g = sigmoid(*g * inv * scale[0] + base) + eps;
    }
    for (g, base) in g[n..2 * n].iter_mut().zip(&base[n..]) {
        *g = 2.0 * sigmoid(*g * inv * scale[1] + base);
    }
    for (g, base) in g[2 * n..].iter_mut().zip(&base[2 * n..]) {
        *g = *g * inv * scale[2] + base;
    }
    if n == 4 {
        sinkhorn::<4>(&mut g[2 * n..], n, geometry.n_sinkhorn, eps);
    } else {
        sinkhorn::<MAX_HC>(&mut g[2 * n..], n, geometry.n_sinkhorn, eps);
    }
}

/// Most streams that a geometry may have.
pub(crate) const MAX_HC: usize = 16;

/// Makes `c`, `[n source, n destination]`, nearly doubly stochastic: a softmax along the destination
/// and a column normalisation, then both normalisations `n_steps - 1` times. Columns are normalised
/// last. `n <= N`.
#[inline(always)]
fn sinkhorn<const N: usize>(c: &mut [f32], n: usize, n_steps: usize, eps: f32) {
    debug_assert!(n <= N && c.len() == n * n);
    for row in c.chunks_exact_mut(n) {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        for x in row.iter_mut() {
            *x = (*x - max).exp();
        }
        let inverse = 1.0 / row.iter().sum::<f32>();
        for x in row {
            *x = *x * inverse + eps;
        }
    }
    for step in 0..n_steps {
        if step > 0 {
            for row in c.chunks_exact_mut(n) {
                let inverse = 1.0 / (row.iter().sum::<f32>() + eps);
                for x in row {
                    *x *= inverse;
                }
            }
        }
        let mut sums = [0.0; N];
        for row in c.chunks_exact(n) {
            for k in 0..n {
                sums[k] += row[k];
            }
        }
        for sum in &mut sums[..n] {
            *sum = 1.0 / (*sum + eps);
        }
        for row in c.chunks_exact_mut(n) {
            for k in 0..n {
                row[k] *= sums[k];
            }
        }
    }
}
