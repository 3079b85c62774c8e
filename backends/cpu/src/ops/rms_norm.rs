use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch, zip};
use crate::weight::Weight;

pub(crate) fn rms_norm(cpu: &mut CpuBackend, rows: &RowsImage, weight: &Weight, x: &mut Buffer) {
    let (path, eps, weight) = (cpu.cpu, cpu.geometry.rms_eps, weight.vector());
    each_row(&mut cpu.pool, rows, x, |_, x| {
        dispatch!(path, rms_norm_row(eps: f32, weight: &[f32], x: &mut [f32]));
    });
}

#[inline(always)]
pub(crate) fn rms_norm_row<S: Simd>(s: S, eps: f32, weight: &[f32], x: &mut [f32]) {
    let inv = s.splat(s.inverse_rms(x, eps));
    zip!(s, x, weight, |x, w| s.mul(w, s.mul(x, inv)));
}
