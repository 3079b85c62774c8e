//! Encoding: the types that need no search ([`plain`]), and those that do.
//!
//! Every search minimises the weighted squared error `sum w (x - y)^2` of what the block decodes
//! to. `w` is the importance of a column, the mean square of what it is multiplied with (an
//! *imatrix*), or 1. All follow one plan: fit each group of elements by itself over a range of
//! scales, fit the block's scale to the groups' scales, then choose each group's code by the exact
//! error, and repeat that with the block's scale refitted to everything chosen.

mod affine;
mod fit;
mod levels;
mod magnitudes;
mod neighbours;
mod plain;
mod signed;
mod ternary;

pub use plain::{Encoder, encode_bf16, encode_f16, encode_q8_0, encoder};

use zerocopy::{Immutable, IntoBytes};

use super::check_row;
use crate::GgmlType;

/// Weights of a block; a block that matters nowhere is encoded as if it mattered evenly.
fn block_weights<const LEN: usize>(weights: Option<&[f32]>, first: usize) -> [f32; LEN] {
    let Some(weights) = weights else {
        return [1.0; LEN];
    };
    let mut w = [0.0; LEN];
    w.copy_from_slice(&weights[first..first + LEN]);
    let sum: f32 = w.iter().sum();
    if sum.is_finite() && sum > 0.0 {
        // Sums of squares stay far from the ends of f32.
        w.map(|w| w * (LEN as f32 / sum))
    } else {
        [1.0; LEN]
    }
}

/// Encodes a row of values to blocks of type `ty`; `weights` has the importance of each value, and
/// negative or infinite ones count as if there were none.
///
/// F32, F16, BF16 and Q8_0 know no weights. A value that is not finite spoils its block.
///
/// # Panics
/// When `out` is not exactly the encoded length of `x`, `weights` have another length than `x`, or
/// `ty` is I32, which encodes no weights.
pub fn encode_row(ty: GgmlType, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    encode_row_inlined(ty, x, weights, out);
}

/// [`encode_row`], inlined into the caller, so that it is compiled with the caller's instructions.
/// The bytes are the same with any.
///
/// # Panics
/// As [`encode_row`].
#[inline(always)]
pub fn encode_row_inlined(ty: GgmlType, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    check_row(ty, out, x.len());
    if let Some(weights) = weights {
        assert_eq!(weights.len(), x.len(), "a weight for every value");
    }
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0 => {
            if let Some(encode) = encoder(ty) {
                encode(x, out);
            }
        }
        GgmlType::Q2_K => blocks(x, weights, out, affine::q2_k),
        GgmlType::Q4_K => blocks(x, weights, out, affine::q4_k),
        GgmlType::Q5_K => blocks(x, weights, out, affine::q5_k),
        GgmlType::Q3_K => blocks(x, weights, out, signed::q3_k),
        GgmlType::Q6_K => blocks(x, weights, out, signed::q6_k),
        GgmlType::IQ4_NL => blocks(x, weights, out, levels::iq4_nl),
        GgmlType::IQ4_XS => blocks(x, weights, out, levels::iq4_xs),
        GgmlType::MXFP4 => blocks(x, weights, out, levels::mxfp4),
        GgmlType::IQ2_XXS => blocks(x, weights, out, magnitudes::iq2_xxs),
        GgmlType::IQ2_XS => blocks(x, weights, out, magnitudes::iq2_xs),
        GgmlType::IQ2_S => blocks(x, weights, out, magnitudes::iq2_s),
        GgmlType::IQ3_XXS => blocks(x, weights, out, magnitudes::iq3_xxs),
        GgmlType::IQ3_S => blocks(x, weights, out, magnitudes::iq3_s),
        GgmlType::IQ1_S => blocks(x, weights, out, ternary::iq1_s),
        GgmlType::IQ1_M => blocks(x, weights, out, ternary::iq1_m),
        GgmlType::I32 => panic!("I32 is for tables, not for weights"),
    }
}

/// Encodes block by block, compiled with the instructions of whoever calls it; so is every search,
/// for they are all inlined.
#[inline(always)]
fn blocks<const LEN: usize, B: IntoBytes + Immutable>(
    x: &[f32],
    weights: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], &[f32; LEN]) -> B,
) {
    let out = out.chunks_exact_mut(size_of::<B>());
    for (i, (x, out)) in x.as_chunks::<LEN>().0.iter().zip(out).enumerate() {
        let w = block_weights(weights, i * LEN);
        out.copy_from_slice(encode(x, &w).as_bytes());
    }
}
