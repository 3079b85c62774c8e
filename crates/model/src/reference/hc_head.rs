use super::hc_gates::mix;
use super::hc_pre::weighted_sum;
use super::{Buffer, Weight, real, sigmoid};
use crate::geometry::Geometry;
use crate::rows::RowsImage;
use crate::weights::HyperConnection;

pub(super) fn hc_head(
    geometry: &Geometry,
    rows: &RowsImage,
    streams: &Buffer,
    hc: &HyperConnection<Weight>,
    h: &mut Buffer,
) {
    let (base, scale) = (hc.base.vector(), hc.scale.vector());
    let mut w = vec![0.0; geometry.n_hc];
    for r in real(rows) {
        mix(geometry.rms_eps, hc, streams.row(r), &mut w);
        for (w, base) in w.iter_mut().zip(base) {
            *w = sigmoid(*w * scale[0] + base) + geometry.hc_eps;
        }
        weighted_sum(streams.row(r), &w, h.row_mut(r));
    }
}
