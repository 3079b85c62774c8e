use ds4_model::RowsImage;
use ds4_model::weights::HyperConnection;

use super::hc_mix::{Means, mix};
use super::hc_pre::weighted_sum;
use super::{inverse_rms, sigmoid};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::simd::dispatch;
use crate::weight::Weight;

pub(crate) fn hc_head(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    h: &mut Buffer,
) {
    let (path, eps, hc_eps) = (cpu.cpu, cpu.geometry.rms_eps, cpu.geometry.hc_eps);
    let (n_hc, base, scale) = (cpu.geometry.n_hc, hc.base.vector(), hc.scale.vector());
    let mut products = std::mem::take(&mut cpu.head_products);
    products.resize(products.len().max(rows.len() * n_hc), 0.0);
    let width = h.width();
    let outs = Spread::new(h.floats_mut());
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
        &mut products,
        |r, weights| {
            let streams = streams.row(r);
            let inv = inverse_rms(path, streams, eps);
            for (w, base) in weights.iter_mut().zip(base) {
                *w = sigmoid(*w * inv * scale[0] + base) + hc_eps;
            }
            // SAFETY: a row is finished once.
            let h = unsafe { outs.slice(r * width, width) };
            let weights = &*weights;
            dispatch!(path, weighted_sum(streams: &[f32], weights: &[f32], h: &mut [f32]));
        },
    );
    cpu.head_products = products;
}
