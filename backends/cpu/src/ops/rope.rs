use ds4_model::{RopeTable, Rotation, RowsImage};

use super::each_head;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, dispatch};

pub(crate) fn rope(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    table: RopeTable,
    rotation: Rotation,
    head_dim: usize,
    x: &mut Buffer,
) {
    let path = cpu.cpu;
    each_head(&mut cpu.pool, rows, head_dim, x, |r, head| {
        let angles = rows.angles(r, table);
        dispatch!(path, rotate_end(rotation: Rotation, angles: &[f32], head: &mut [f32]));
    });
}

/// Rotates the last pairs of `x` by as many (cosine, sine) pairs.
#[inline(always)]
pub(crate) fn rotate_end<S: Simd>(_: S, rotation: Rotation, angles: &[f32], x: &mut [f32]) {
    // A plain loop: the compiler vectorises it for the instructions it is compiled for.
    let sign = match rotation {
        Rotation::Forward => 1.0,
        Rotation::Inverse => -1.0,
    };
    let start = x.len() - angles.len();
    let (pairs, _) = x[start..].as_chunks_mut::<2>();
    let (angles, _) = angles.as_chunks::<2>();
    for ([a, b], [cos, sin]) in pairs.iter_mut().zip(angles) {
        let sin = sign * sin;
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}
