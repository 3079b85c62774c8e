use ds4_model::{Entry, RowsImage};

use super::hc_gates::finish_gates;
use super::hc_mix::{Means, mix};
use super::hc_pre::weighted_sum;
use super::inverse_rms;
use super::rms_norm::rms_norm_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::simd::{Simd, dispatch};
use crate::weight::Weight;

pub(crate) fn hc_pre_norm(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    entry: Entry<'_, Weight>,
    gates: &mut Buffer,
    x: &mut Buffer,
) {
    let Entry { hc, norm } = entry;
    let (path, geometry) = (cpu.cpu, &cpu.geometry);
    let (n_hc, eps, norm, width) = (geometry.n_hc, geometry.rms_eps, norm.vector(), x.width());
    let outs = Spread::new(x.floats_mut());
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
            let streams = streams.row(r);
            finish_gates(geometry, hc, inverse_rms(path, streams, eps), gates);
            // SAFETY: a row is finished once.
            let x = unsafe { outs.slice(r * width, width) };
            let weights = &gates[..n_hc];
            dispatch!(
                path,
                sum_norm(eps: f32, streams: &[f32], weights: &[f32], norm: &[f32], x: &mut [f32])
            );
        },
    );
}

#[inline(always)]
fn sum_norm<S: Simd>(
    s: S,
    eps: f32,
    streams: &[f32],
    weights: &[f32],
    norm: &[f32],
    x: &mut [f32],
) {
    weighted_sum(s, streams, weights, x);
    rms_norm_row(s, eps, norm, x);
}
