use super::{Buffer, real};
use crate::geometry::Geometry;
use crate::rounding::kv_round_row;
use crate::rows::RowsImage;

pub(super) fn kv_round(geometry: &Geometry, rows: &RowsImage, x: &mut Buffer) {
    for r in real(rows) {
        kv_round_row(x.row_mut(r), geometry.rope_dim);
    }
}
