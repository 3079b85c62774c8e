use super::{Buffer, Weight, dot, real};
use crate::geometry::Geometry;
use crate::rows::RowsImage;

pub(super) fn matmul_grouped(
    geometry: &Geometry,
    rows: &RowsImage,
    weight: &Weight,
    x: &Buffer,
    out: &mut Buffer,
) {
    let group_dim = geometry.group_dim();
    let mut w = vec![0.0; group_dim];
    for o in 0..weight.n_out() {
        let group = o / geometry.out_rank;
        weight.decode(o, &mut w);
        for r in real(rows) {
            let x = &x.row(r)[group * group_dim..][..group_dim];
            out.row_mut(r)[o] = dot(&w, x);
        }
    }
}
