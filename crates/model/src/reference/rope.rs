use super::{Buffer, real};
use crate::geometry::Geometry;
use crate::operands::Rotation;
use crate::rope::RopeTable;
use crate::rows::RowsImage;

pub(super) fn rope(
    geometry: &Geometry,
    rows: &RowsImage,
    table: RopeTable,
    rotation: Rotation,
    head_dim: usize,
    x: &mut Buffer,
) {
    for r in real(rows) {
        let angles = rows.angles(r, table);
        for head in x.row_mut(r).chunks_exact_mut(head_dim) {
            let rotated = &mut head[head_dim - geometry.rope_dim..];
            for (pair, angle) in rotated.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
                let (a, b) = (pair[0], pair[1]);
                let cos = angle[0];
                let sin = match rotation {
                    Rotation::Forward => angle[1],
                    Rotation::Inverse => -angle[1],
                };
                pair[0] = a * cos - b * sin;
                pair[1] = a * sin + b * cos;
            }
        }
    }
}
