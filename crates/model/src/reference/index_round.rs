use super::{Buffer, real};
use crate::geometry::Geometry;
use crate::rounding::index_round_row;
use crate::rows::RowsImage;

pub(super) fn index_round(geometry: &Geometry, rows: &RowsImage, x: &mut Buffer) {
    for r in real(rows) {
        for head in x.row_mut(r).chunks_exact_mut(geometry.index_dim) {
            index_round_row(head);
        }
    }
}
