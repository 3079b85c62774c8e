use super::{Buffer, real};
use crate::geometry::Geometry;
use crate::rows::RowsImage;

pub(super) fn tap(
    geometry: &Geometry,
    rows: &RowsImage,
    streams: &Buffer,
    at: usize,
    taps: &mut Buffer,
) {
    let n = geometry.n_embd;
    for r in real(rows) {
        let streams = streams.row(r);
        for (i, out) in taps.row_mut(r)[at * n..][..n].iter_mut().enumerate() {
            let sum: f32 = (0..geometry.n_hc).map(|j| streams[j * n + i]).sum();
            *out = sum / geometry.n_hc as f32;
        }
    }
}
