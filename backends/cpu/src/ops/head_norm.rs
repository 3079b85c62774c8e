use ds4_model::RowsImage;

use super::each_head;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch, map};

pub(crate) fn head_norm(cpu: &mut CpuBackend, rows: &RowsImage, head_dim: usize, x: &mut Buffer) {
    let (path, eps) = (cpu.cpu, cpu.geometry.rms_eps);
    each_head(&mut cpu.pool, rows, head_dim, x, |_, head| {
        dispatch!(path, normalise(eps: f32, head: &mut [f32]));
    });
}

/// `x *= 1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub(crate) fn normalise<S: Simd>(s: S, eps: f32, x: &mut [f32]) {
    let inv = s.splat(s.inverse_rms(x, eps));
    map!(s, x, |x| s.mul(x, inv));
}
