use ds4_formats::small_float::{E4M3_MAX, bf16_from_f32, bf16_to_f32};
use ds4_model::RowsImage;
use ds4_model::rounding::{KV_ROUND_BLOCK, exp2i, kv_scale_exponent};

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, SimdExt, dispatch, map};

pub(crate) fn kv_round(cpu: &mut CpuBackend, rows: &RowsImage, x: &mut Buffer) {
    let (path, rope_dim) = (cpu.cpu, cpu.geometry.rope_dim);
    each_row(&mut cpu.pool, rows, x, |_, x| {
        dispatch!(path, kv_round_row(rope_dim: usize, x: &mut [f32]));
    });
}

/// [`ds4_model::rounding::kv_round_row`].
#[inline(always)]
pub(crate) fn kv_round_row<S: Simd>(s: S, rope_dim: usize, row: &mut [f32]) {
    let split = row.len() - rope_dim;
    let (plain, rotated) = row.split_at_mut(split);
    for block in plain.chunks_mut(KV_ROUND_BLOCK) {
        let amax = s.largest_magnitude(block);
        let exponent = kv_scale_exponent(&[amax]);
        let (scale, inverse) = (exp2i(exponent), exp2i(-exponent));
        round_block::<S, -6, 3>(s, scale, inverse, E4M3_MAX, block);
    }
    for x in rotated {
        *x = bf16_to_f32(bf16_from_f32(*x));
    }
}

/// Rounds `x / scale`, limited to `±limit`, to a float of `FRACTION` bits whose smallest normal
/// number is `2^LEAST`, ties to even, and scales it back. `inverse` is `1 / scale`; both are powers
/// of two.
///
/// Adding `1.5 * 2^(23 - FRACTION)` times the power of two at or below a number leaves no bits below
/// the last one that is kept, so that the addition rounds as wanted and the subtraction is exact.
#[inline(always)]
pub(crate) fn round_block<S: Simd, const LEAST: i32, const FRACTION: i32>(
    s: S,
    scale: f32,
    inverse: f32,
    limit: f32,
    block: &mut [f32],
) {
    let (scale, inverse) = (s.splat(scale), s.splat(inverse));
    let (least, shift) = (s.splat(exp2i(LEAST)), s.splat(1.5 * exp2i(23 - FRACTION)));
    let (high, low) = (s.splat(limit), s.splat(-limit));
    map!(s, block, |x| {
        let y = s.max(s.min(s.mul(x, inverse), high), low);
        let shift = s.mul(s.max(s.exponent(y), least), shift);
        s.mul(s.sub(s.add(y, shift), shift), scale)
    });
}
