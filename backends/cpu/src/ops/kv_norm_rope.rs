use ds4_model::{RopeTable, Rotation, RowsImage};

use super::each_row;
use super::kv_round::kv_round_row;
use super::rms_norm::rms_norm_row;
use super::rope::rotate_end;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, dispatch};
use crate::weight::Weight;

pub(crate) fn kv_norm_rope(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    norm: &Weight,
    table: RopeTable,
    rounded: bool,
    kv: &mut Buffer,
) {
    let (path, eps, norm) = (cpu.cpu, cpu.geometry.rms_eps, norm.vector());
    each_row(&mut cpu.pool, rows, kv, |r, kv| {
        let angles = rows.angles(r, table);
        dispatch!(
            path,
            norm_rotate_round(eps: f32, norm: &[f32], angles: &[f32], rounded: bool, kv: &mut [f32])
        );
    });
}

/// What makes a row of a cache: norm, rotation and, when `rounded`, rounding.
#[inline(always)]
pub(crate) fn norm_rotate_round<S: Simd>(
    s: S,
    eps: f32,
    norm: &[f32],
    angles: &[f32],
    rounded: bool,
    x: &mut [f32],
) {
    rms_norm_row(s, eps, norm, x);
    rotate_end(s, Rotation::Forward, angles, x);
    if rounded {
        kv_round_row(s, angles.len(), x);
    }
}
