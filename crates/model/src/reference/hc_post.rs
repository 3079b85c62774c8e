use super::{Buffer, real};
use crate::geometry::Geometry;
use crate::rows::RowsImage;

pub(super) fn hc_post(
    geometry: &Geometry,
    rows: &RowsImage,
    y: &Buffer,
    gates: &Buffer,
    streams: &mut Buffer,
) {
    let (n, n_embd) = (geometry.n_hc, geometry.n_embd);
    let mut old = vec![0.0; n];
    for r in real(rows) {
        let (post, comb) = gates.row(r)[n..].split_at(n);
        let y = y.row(r);
        let streams = streams.row_mut(r);
        for c in 0..n_embd {
            for j in 0..n {
                old[j] = streams[j * n_embd + c];
            }
            for k in 0..n {
                let mixed: f32 = (0..n).map(|j| comb[j * n + k] * old[j]).sum();
                streams[k * n_embd + c] = post[k] * y[c] + mixed;
            }
        }
    }
}
