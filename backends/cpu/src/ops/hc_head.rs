use ds4_model::RowsImage;
use ds4_model::weights::HyperConnection;

use super::hc_gates::mix;
use super::hc_pre::weighted_sum;
use super::{each_row, sigmoid};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn hc_head(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    h: &mut Buffer,
) {
    let geometry = &cpu.geometry;
    let (base, scale) = (hc.base.vector(), hc.scale.vector());
    each_row(&mut cpu.pool, rows, h, |r, h| {
        let mut w = vec![0.0; geometry.n_hc];
        mix(geometry.rms_eps, hc, streams.row(r), &mut w);
        for (w, base) in w.iter_mut().zip(base) {
            *w = sigmoid(*w * scale[0] + base) + geometry.hc_eps;
        }
        weighted_sum(streams.row(r), &w, h);
    });
}
