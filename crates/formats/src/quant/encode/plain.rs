//! The encodings that need no search.

use half::f16;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::GgmlType;
use crate::quant::block::BlockQ8_0;
use crate::quant::check_row;
use crate::small_float::bf16_from_f32;

/// Encodes values to whole blocks; panics unless the output is exactly their encoded length.
pub type Encoder = fn(&[f32], &mut [u8]);

/// The encoder to a type; `None` for the types without one.
pub const fn encoder(ty: GgmlType) -> Option<Encoder> {
    match ty {
        GgmlType::F32 => Some(encode_f32),
        GgmlType::F16 => Some(encode_f16),
        GgmlType::BF16 => Some(encode_bf16),
        GgmlType::Q8_0 => Some(encode_q8_0),
        _ => None,
    }
}

fn encode_f32(x: &[f32], out: &mut [u8]) {
    encode_words(GgmlType::F32, x, out, f32::to_le_bytes);
}

/// To half precision, to nearest with ties to even; beyond 65504 it rounds to infinity.
///
/// # Panics
/// Unless `out` is exactly the encoded length of `x`; so do the other encoders.
pub fn encode_f16(x: &[f32], out: &mut [u8]) {
    encode_words(GgmlType::F16, x, out, |x| f16::from_f32(x).to_le_bytes());
}

/// To bfloat16, to nearest with ties to even.
pub fn encode_bf16(x: &[f32], out: &mut [u8]) {
    encode_words(GgmlType::BF16, x, out, |x| bf16_from_f32(x).to_le_bytes());
}

fn encode_words<const N: usize>(
    ty: GgmlType,
    x: &[f32],
    out: &mut [u8],
    bytes: fn(f32) -> [u8; N],
) {
    check_row(ty, out, x.len());
    for (&x, word) in x.iter().zip(out.as_chunks_mut().0) {
        *word = bytes(x);
    }
}

/// To Q8_0 blocks, as ggml does: the scale is the largest magnitude over 127, stored as a half;
/// codes are `x` times the inverse of the scale before that rounding, rounded to the nearest
/// integer, ties away from zero. A block whose scale overflows a half gets an infinite scale.
///
/// # Panics
/// Unless `x` is whole blocks and `out` exactly their encoded length.
pub fn encode_q8_0(x: &[f32], out: &mut [u8]) {
    check_row(GgmlType::Q8_0, out, x.len());
    q8_0(x, out);
}

/// [`encode_q8_0`] with the caller's instructions.
#[inline(always)]
pub(super) fn q8_0(x: &[f32], out: &mut [u8]) {
    for (x, out) in x
        .as_chunks::<32>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<34>().0)
    {
        let mut largest = [0.0f32; 8];
        for x in x.as_chunks::<8>().0 {
            for (largest, x) in largest.iter_mut().zip(x) {
                *largest = largest.max(x.abs());
            }
        }
        let amax = largest.into_iter().fold(0.0, f32::max);
        let d = amax / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let mut qs = [0; 32];
        for (q, x) in qs.iter_mut().zip(x) {
            *q = (x * inverse).round() as i8;
        }
        let block = BlockQ8_0 {
            d: U16::new(f16::from_f32(d).to_bits()),
            qs,
        };
        out.copy_from_slice(block.as_bytes());
    }
}
