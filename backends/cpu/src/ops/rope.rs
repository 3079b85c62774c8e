use ds4_model::{RopeTable, Rotation, RowsImage};

use super::each_head;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn rope(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    table: RopeTable,
    rotation: Rotation,
    head_dim: usize,
    x: &mut Buffer,
) {
    let rope_dim = cpu.geometry.rope_dim;
    each_head(&mut cpu.pool, rows, head_dim, x, |r, head| {
        let rotated = &mut head[head_dim - rope_dim..];
        let angles = rows.angles(r, table);
        for (pair, angle) in rotated.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
            let (a, b, cos) = (pair[0], pair[1], angle[0]);
            let sin = match rotation {
                Rotation::Forward => angle[1],
                Rotation::Inverse => -angle[1],
            };
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    });
}
