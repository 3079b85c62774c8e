//! Products of one row of weights with one row of activations.

use half::f16;

use super::activation::{ActQ8, Activation, BlockQ8K};
use super::block::*;
use super::check_row;
use super::unpack::{Unpack, Unpacked};
use crate::GgmlType;
use crate::small_float::bf16_to_f32;

/// The product of a row of weights with a row of activations.
///
/// Blocked types multiply integers within a scale, exactly, and add the scaled sums in f32, one
/// block after the other. F32, F16 and BF16 weights are multiplied in f32 into eight partial sums
/// (element `e` goes to sum `e mod 8`), which are added pairwise at the end.
///
/// # Panics
/// When the activations are not of the kind that [`GgmlType::activation`] names for `ty`, or `row`
/// does not hold as many elements.
pub fn dot(ty: GgmlType, row: &[u8], x: &Activation<'_>) -> f32 {
    check_row(ty, row, x.len());
    match (ty, *x) {
        (GgmlType::F32, Activation::F32(x)) => dot_words(row, x, f32::from_le_bytes),
        (GgmlType::F16, Activation::F32(x)) => {
            dot_words(row, x, |b| f16::from_le_bytes(b).to_f32())
        }
        (GgmlType::BF16, Activation::F32(x)) => {
            dot_words(row, x, |b| bf16_to_f32(u16::from_le_bytes(b)))
        }
        (GgmlType::Q8_0, Activation::Q8(x)) => dot_32(BlockQ8_0::row(row), x),
        (GgmlType::IQ4_NL, Activation::Q8(x)) => dot_32(BlockIq4Nl::row(row), x),
        (GgmlType::MXFP4, Activation::Q8(x)) => dot_32(BlockMxfp4::row(row), x),
        (GgmlType::Q2_K, Activation::Q8K(x)) => dot_256(BlockQ2K::row(row), x),
        (GgmlType::Q3_K, Activation::Q8K(x)) => dot_256(BlockQ3K::row(row), x),
        (GgmlType::Q4_K, Activation::Q8K(x)) => dot_256(BlockQ4K::row(row), x),
        (GgmlType::Q5_K, Activation::Q8K(x)) => dot_256(BlockQ5K::row(row), x),
        (GgmlType::Q6_K, Activation::Q8K(x)) => dot_256(BlockQ6K::row(row), x),
        (GgmlType::IQ2_XXS, Activation::Q8K(x)) => dot_256(BlockIq2Xxs::row(row), x),
        (GgmlType::IQ2_XS, Activation::Q8K(x)) => dot_256(BlockIq2Xs::row(row), x),
        (GgmlType::IQ2_S, Activation::Q8K(x)) => dot_256(BlockIq2S::row(row), x),
        (GgmlType::IQ3_XXS, Activation::Q8K(x)) => dot_256(BlockIq3Xxs::row(row), x),
        (GgmlType::IQ3_S, Activation::Q8K(x)) => dot_256(BlockIq3S::row(row), x),
        (GgmlType::IQ1_S, Activation::Q8K(x)) => dot_256(BlockIq1S::row(row), x),
        (GgmlType::IQ1_M, Activation::Q8K(x)) => dot_256(BlockIq1M::row(row), x),
        (GgmlType::IQ4_XS, Activation::Q8K(x)) => dot_256(BlockIq4Xs::row(row), x),
        (_, x) => panic!(
            "{ty} weights take {:?} activations, not {x:?}",
            ty.activation()
        ),
    }
}

fn dot_words<const N: usize>(row: &[u8], x: &[f32], value: fn([u8; N]) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    for (e, (&word, &x)) in row.as_chunks().0.iter().zip(x).enumerate() {
        sums[e % 8] += value(word) * x;
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// The exact sum of products of weight codes with activation codes.
fn product(v: &[i8], q: &[i8]) -> i32 {
    v.iter()
        .zip(q)
        .map(|(&v, &q)| i32::from(v) * i32::from(q))
        .sum()
}

fn dot_32<B: Unpack<32, 1>>(blocks: &[B], x: &[ActQ8]) -> f32 {
    let mut sum = 0.0;
    for (block, x) in blocks.iter().zip(x) {
        let Unpacked {
            v, scale: [scale], ..
        } = block.unpack();
        // The scales are not multiplied with one another, where two small ones would underflow.
        sum += scale * (x.d * product(&v, &x.qs) as f32);
    }
    sum
}

fn dot_256<B: Unpack<256, 16>>(blocks: &[B], x: &[BlockQ8K]) -> f32 {
    let mut sum = 0.0;
    for (block, x) in blocks.iter().zip(x) {
        let Unpacked { v, scale, min } = block.unpack();
        let mut block_sum = 0.0;
        for k in 0..16 {
            let at = 16 * k..16 * k + 16;
            block_sum += scale[k] * product(&v[at.clone()], &x.qs[at]) as f32;
            block_sum -= min[k] * f32::from(x.bsums[k]);
        }
        sum += x.d * block_sum;
    }
    sum
}
