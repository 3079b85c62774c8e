use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch, zip};

pub(crate) fn add(cpu: &mut CpuBackend, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
    let path = cpu.cpu;
    each_row(&mut cpu.pool, rows, out, |r, out| {
        let x = x.row(r);
        dispatch!(path, add_row(x: &[f32], out: &mut [f32]));
    });
}

/// `out += x`.
#[inline(always)]
pub(crate) fn add_row<S: Simd>(s: S, x: &[f32], out: &mut [f32]) {
    zip!(s, out, x, |out, x| s.add(out, x));
}
