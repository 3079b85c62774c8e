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
mod rounds;
mod signed;
mod ternary;

pub use plain::{Encoder, encode_bf16, encode_f16, encode_q8_0, encoder};

use zerocopy::IntoBytes;

use super::check_row;
use crate::GgmlType;

/// Weights of a block; a block that matters nowhere is encoded as if it mattered evenly.
#[inline(always)]
fn block_weights<const LEN: usize>(weights: Option<&[f32]>, first: usize) -> [f32; LEN] {
    let Some(weights) = weights else {
        return [1.0; LEN];
    };
    let mut w = [0.0; LEN];
    w.copy_from_slice(&weights[first..first + LEN]);
    let mut sums = [0.0; fit::LANES];
    for w in fit::parts(&w) {
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum += w;
        }
    }
    let sum = fit::total(sums);
    if sum.is_finite() && sum > 0.0 {
        // Sums of squares stay far from the ends of f32.
        for w in &mut w {
            *w *= LEN as f32 / sum;
        }
        w
    } else {
        [1.0; LEN]
    }
}

/// Encodes block by block. Not a function that takes the search as an argument: calls of those are
/// not inlined, and the search would be compiled without the caller's vector instructions.
macro_rules! blocks {
    ($len:literal, $encode:path, $x:expr, $weights:expr, $out:expr) => {{
        let n_bytes = $out.len() / ($x.len() / $len).max(1);
        let out = $out.chunks_exact_mut(n_bytes.max(1));
        for (i, (x, out)) in $x.as_chunks::<$len>().0.iter().zip(out).enumerate() {
            let w = block_weights($weights, i * $len);
            out.copy_from_slice($encode(x, &w).as_bytes());
        }
    }};
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
        GgmlType::Q8_0 => plain::q8_0(x, out),
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {
            if let Some(encode) = encoder(ty) {
                encode(x, out);
            }
        }
        GgmlType::Q2_K => blocks!(256, affine::q2_k, x, weights, out),
        GgmlType::Q4_K => blocks!(256, affine::q4_k, x, weights, out),
        GgmlType::Q5_K => blocks!(256, affine::q5_k, x, weights, out),
        GgmlType::Q3_K => blocks!(256, signed::q3_k, x, weights, out),
        GgmlType::Q6_K => blocks!(256, signed::q6_k, x, weights, out),
        GgmlType::IQ4_NL => blocks!(32, levels::iq4_nl, x, weights, out),
        GgmlType::IQ4_XS => blocks!(256, levels::iq4_xs, x, weights, out),
        GgmlType::MXFP4 => blocks!(32, levels::mxfp4, x, weights, out),
        GgmlType::IQ2_XXS => blocks!(256, magnitudes::iq2_xxs, x, weights, out),
        GgmlType::IQ2_XS => blocks!(256, magnitudes::iq2_xs, x, weights, out),
        GgmlType::IQ2_S => blocks!(256, magnitudes::iq2_s, x, weights, out),
        GgmlType::IQ3_XXS => blocks!(256, magnitudes::iq3_xxs, x, weights, out),
        GgmlType::IQ3_S => blocks!(256, magnitudes::iq3_s, x, weights, out),
        GgmlType::IQ1_S => blocks!(256, ternary::iq1_s, x, weights, out),
        GgmlType::IQ1_M => blocks!(256, ternary::iq1_m, x, weights, out),
        GgmlType::I32 => panic!("I32 is for tables, not for weights"),
    }
}
