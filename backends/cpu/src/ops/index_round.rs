use ds4_formats::small_float::E2M1_MAX;
use ds4_model::RowsImage;
use ds4_model::rounding::{INDEX_ROUND_BLOCK, exp2i, hadamard, index_scale_exponent};

use super::each_head;
use super::kv_round::round_block;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch};

pub(crate) fn index_round(cpu: &mut CpuBackend, rows: &RowsImage, x: &mut Buffer) {
    let (path, dim) = (cpu.cpu, cpu.geometry.index_dim);
    each_head(&mut cpu.pool, rows, dim, x, |_, head| {
        dispatch!(path, index_round_row(head: &mut [f32]));
    });
}

/// [`ds4_model::rounding::index_round_row`].
#[inline(always)]
pub(crate) fn index_round_row<S: Simd>(s: S, row: &mut [f32]) {
    hadamard(row);
    for block in row.chunks_mut(INDEX_ROUND_BLOCK) {
        let amax = s.largest_magnitude(block);
        let exponent = index_scale_exponent(&[amax]);
        // 2^126 is the inverse of the least scale.
        let (scale, inverse) = (exp2i(exponent), exp2i(-exponent));
        round_block::<S, 0, 1>(s, scale, inverse, E2M1_MAX, block);
    }
}
