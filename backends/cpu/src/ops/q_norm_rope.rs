use ds4_model::{RopeTable, Rotation, RowsImage};

use super::each_head;
use super::head_norm::normalise;
use super::rope::rotate_end;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, dispatch};

pub(crate) fn q_norm_rope(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    table: RopeTable,
    q: &mut Buffer,
) {
    let (path, eps) = (cpu.cpu, cpu.geometry.rms_eps);
    let head_dim = cpu.geometry.head_dim;
    each_head(&mut cpu.pool, rows, head_dim, q, |r, head| {
        let angles = rows.angles(r, table);
        dispatch!(path, norm_rotate(eps: f32, angles: &[f32], head: &mut [f32]));
    });
}

#[inline(always)]
fn norm_rotate<S: Simd>(s: S, eps: f32, angles: &[f32], head: &mut [f32]) {
    normalise(s, eps, head);
    rotate_end(s, Rotation::Forward, angles, head);
}
