//! Quantised blocks: decoding, encoding, and products with quantised activations.
//!
//! Everything here is scalar and follows the formulas of `docs/gguf.md`: it is what faster code is
//! tested against. Each block type is taken apart in one place (into small integers, scales and
//! mins), and both [`decode_row`] and [`dot`] start from that.

mod activation;
mod block;
mod dot;
mod encode;
mod grid;
mod unpack;

use half::f16;

pub use activation::{ActQ8, Activation, BlockQ8K, quantize_q8, quantize_q8_k};
pub use block::*;
pub use dot::dot;
pub use encode::{
    Encoder, encode_bf16, encode_f16, encode_q8_0, encode_row, encode_row_inlined, encoder,
};
pub use grid::*;

use crate::GgmlType;
use crate::small_float::bf16_to_f32;
use unpack::{Unpack, Unpacked};

/// Decodes whole blocks of type `ty` from `bytes` into `out`.
///
/// Values are what the format says, computed in f32; I32 elements become the nearest f32.
///
/// # Panics
/// When `bytes` does not hold exactly `out.len()` elements of `ty`.
pub fn decode_row(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    check_row(ty, bytes, out.len());
    match ty {
        GgmlType::F32 => decode_words(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => decode_words(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        GgmlType::BF16 => decode_words(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        GgmlType::I32 => decode_words(bytes, out, |b| i32::from_le_bytes(b) as f32),
        GgmlType::Q8_0 => decode_blocks(BlockQ8_0::row(bytes), out),
        GgmlType::Q2_K => decode_blocks(BlockQ2K::row(bytes), out),
        GgmlType::Q3_K => decode_blocks(BlockQ3K::row(bytes), out),
        GgmlType::Q4_K => decode_blocks(BlockQ4K::row(bytes), out),
        GgmlType::Q5_K => decode_blocks(BlockQ5K::row(bytes), out),
        GgmlType::Q6_K => decode_blocks(BlockQ6K::row(bytes), out),
        GgmlType::IQ2_XXS => decode_blocks(BlockIq2Xxs::row(bytes), out),
        GgmlType::IQ2_XS => decode_blocks(BlockIq2Xs::row(bytes), out),
        GgmlType::IQ2_S => decode_blocks(BlockIq2S::row(bytes), out),
        GgmlType::IQ3_XXS => decode_blocks(BlockIq3Xxs::row(bytes), out),
        GgmlType::IQ3_S => decode_blocks(BlockIq3S::row(bytes), out),
        GgmlType::IQ1_S => decode_blocks(BlockIq1S::row(bytes), out),
        GgmlType::IQ1_M => decode_blocks(BlockIq1M::row(bytes), out),
        GgmlType::IQ4_NL => decode_blocks(BlockIq4Nl::row(bytes), out),
        GgmlType::IQ4_XS => decode_blocks(BlockIq4Xs::row(bytes), out),
        GgmlType::MXFP4 => decode_blocks(BlockMxfp4::row(bytes), out),
    }
}

/// The agreement of a row's bytes with its element count, which every entry point relies on.
fn check_row(ty: GgmlType, bytes: &[u8], n: usize) {
    assert!(
        ty.row_bytes(n) == Some(bytes.len()),
        "{} bytes do not hold {n} elements of {ty}",
        bytes.len()
    );
}

fn decode_words<const N: usize>(bytes: &[u8], out: &mut [f32], value: fn([u8; N]) -> f32) {
    for (&word, y) in bytes.as_chunks().0.iter().zip(out) {
        *y = value(word);
    }
}

fn decode_blocks<B, const LEN: usize, const SUBS: usize>(blocks: &[B], out: &mut [f32])
where
    B: Unpack<LEN, SUBS>,
{
    for (block, y) in blocks.iter().zip(out.as_chunks_mut::<LEN>().0) {
        let Unpacked { v, scale, min } = block.unpack();
        for e in 0..LEN {
            let k = e / (LEN / SUBS);
            y[e] = scale[k] * f32::from(v[e]) - min[k];
        }
    }
}
