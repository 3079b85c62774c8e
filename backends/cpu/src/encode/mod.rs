//! Encoding weights with the vector instructions of this machine.

#[cfg(target_arch = "x86_64")]
mod mxfp4;

use ds4_formats::GgmlType;
use ds4_formats::quant::encode_row_inlined;

/// [`ds4_formats::quant::encode_row`], the same bytes sooner.
///
/// # Panics
/// As there.
pub fn encode_row(ty: GgmlType, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        if gains_by_avx512(ty) && is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions, which was asked just now.
            unsafe { encode_row_avx512(ty, x, weights, out) };
            return;
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions, which was asked just now.
            unsafe { encode_row_avx2(ty, x, weights, out) };
            return;
        }
    }
    encode_row_inlined(ty, x, weights, out);
}

/// Whether twice as wide vectors are worth it: for searches side by side in 16 groups, of scale and
/// min, or in the 16 rows around a point of a grid.
#[cfg(target_arch = "x86_64")]
fn gains_by_avx512(ty: GgmlType) -> bool {
    use GgmlType::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, Q2_K, Q4_K, Q5_K};
    matches!(
        ty,
        Q2_K | Q4_K | Q5_K | IQ1_M | IQ1_S | IQ2_S | IQ2_XS | IQ2_XXS | IQ3_S | IQ3_XXS
    )
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_row_avx2(ty: GgmlType, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    if ty == GgmlType::MXFP4 {
        assert_eq!(ty.row_bytes(x.len()), Some(out.len()), "whole blocks");
        assert!(weights.is_none_or(|w| w.len() == x.len()), "a weight each");
        mxfp4::encode(x, weights, out);
        return;
    }
    encode_row_inlined(ty, x, weights, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn encode_row_avx512(ty: GgmlType, x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    encode_row_inlined(ty, x, weights, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_plain_code() {
        let x: Vec<f32> = (0..512)
            .map(|i| (i as f32 * 0.37).sin() * (i % 13) as f32)
            .collect();
        let w: Vec<f32> = (0..512).map(|i| 1.0 + (i % 7) as f32).collect();
        for &ty in GgmlType::all().iter().filter(|ty| **ty != GgmlType::I32) {
            let n_bytes = ty.row_bytes(x.len()).expect("whole blocks");
            for weights in [None, Some(&w[..])] {
                let (mut plain, mut fast) = (vec![0; n_bytes], vec![0; n_bytes]);
                ds4_formats::quant::encode_row(ty, &x, weights, &mut plain);
                encode_row(ty, &x, weights, &mut fast);
                assert_eq!(plain, fast, "{ty}");
            }
        }
    }
}
