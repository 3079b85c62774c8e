//! Quantised activations and their products with rows of weights.

use ds4_formats::quant::{
    ActQ8, Activation, BlockQ8K, decode_row, dot, encoder, quantize_q8, quantize_q8_k,
};
use ds4_formats::{ActivationKind, GgmlType};
use proptest::prelude::*;

use crate::npz::read_npz;
use crate::testdata;

/// Numbers of very different size, from a generator that needs no dependency.
fn noise(n: usize, mut seed: u64) -> Vec<f32> {
    let mut next = || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() * (4.0 * next()).exp()).collect()
}

/// A product in f64, and the bound of what rounding in f32 may add to it: the f32 step of the sum of
/// magnitudes, and a subnormal step for every element.
fn exact(weights: &[f32], x: &[f32]) -> (f64, f64) {
    let pairs = || {
        weights
            .iter()
            .zip(x)
            .map(|(&w, &x)| f64::from(w) * f64::from(x))
    };
    let largest = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let magnitudes: f64 = x
        .iter()
        .map(|x| f64::from(x.abs()) * f64::from(largest))
        .sum();
    let subnormal_steps = x.len() as f64 * 2f64.powi(-149);
    (
        pairs().sum(),
        magnitudes * f64::from(f32::EPSILON) + subnormal_steps,
    )
}

fn dequantized(x: &Activation<'_>) -> Vec<f32> {
    let scaled = |d: f32, qs: &[i8]| qs.iter().map(|&q| d * f32::from(q)).collect::<Vec<f32>>();
    match x {
        Activation::F32(x) => x.to_vec(),
        Activation::Q8(x) => x.iter().flat_map(|b| scaled(b.d, &b.qs)).collect(),
        Activation::Q8K(x) => x.iter().flat_map(|b| scaled(b.d, &b.qs)).collect(),
    }
}

#[test]
fn a_product_is_that_of_the_decoded_row_and_the_dequantised_activations() {
    let arrays = read_npz(&testdata("blocks.npz"));
    for &ty in GgmlType::all() {
        let Some(kind) = ty.activation() else {
            continue;
        };
        let blocks: Vec<&[u8]> = arrays[&format!("{ty}_raw")]
            .u8()
            .chunks(ty.block_bytes())
            .collect();
        for n_blocks in [0, 1, 2, 3, 5, 16, 33] {
            // Every length begins with another block.
            let row: Vec<u8> = (n_blocks..2 * n_blocks)
                .flat_map(|i| blocks[i % blocks.len()])
                .copied()
                .collect();
            let n = n_blocks * ty.block_len();
            let x = noise(n, n as u64);
            let mut q8 = vec![ActQ8::ZERO; n / 32];
            let mut q8_k = vec![BlockQ8K::ZERO; n / 256];
            let activation = match kind {
                ActivationKind::F32 => Activation::F32(&x),
                ActivationKind::Q8 => {
                    quantize_q8(&x, &mut q8);
                    Activation::Q8(&q8)
                }
                ActivationKind::Q8K => {
                    quantize_q8_k(&x, &mut q8_k);
                    Activation::Q8K(&q8_k)
                }
            };
            let mut weights = vec![0.0; n];
            decode_row(ty, &row, &mut weights);
            let (expected, bound) = exact(&weights, &dequantized(&activation));
            let found = f64::from(dot(ty, &row, &activation));
            assert!(
                (found - expected).abs() <= bound,
                "{ty}, {n_blocks} blocks: found {found:e}, expected {expected:e} within {bound:e}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "Q2_K weights take Some(Q8K) activations")]
fn the_wrong_kind_of_activations_is_refused() {
    dot(GgmlType::Q2_K, &[0; 84], &Activation::Q8(&[ActQ8::ZERO; 8]));
}

#[test]
#[should_panic(expected = "84 bytes do not hold 512 elements of Q2_K")]
fn rows_of_different_length_are_refused() {
    dot(
        GgmlType::Q2_K,
        &[0; 84],
        &Activation::Q8K(&[BlockQ8K::ZERO; 2]),
    );
}

fn check_codes(x: &[f32], d: f32, qs: &[i8]) {
    let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert_eq!(d, amax / 127.0);
    for (&v, &q) in x.iter().zip(qs) {
        assert!(q >= -127);
        // Half a step, and the rounding of the quotient.
        let error = (f64::from(v) / f64::from(d) - f64::from(q)).abs();
        assert!(
            error <= 0.5 + 127.0 * 2.0 * f64::from(f32::EPSILON),
            "{v:e} / {d:e} became {q}"
        );
    }
}

proptest! {
    #[test]
    fn activations_are_rounded_to_the_nearest_code(
        seed in any::<u64>(),
        exponent in -100i32..100,
        n_blocks in 1usize..4,
    ) {
        let factor = 2f32.powi(exponent);
        let x: Vec<f32> = noise(256 * n_blocks, seed).iter().map(|v| v * factor).collect();
        let mut q8 = vec![ActQ8::ZERO; 8 * n_blocks];
        quantize_q8(&x, &mut q8);
        for (x, block) in x.chunks(32).zip(&q8) {
            check_codes(x, block.d, &block.qs);
        }
        let mut q8_k = vec![BlockQ8K::ZERO; n_blocks];
        quantize_q8_k(&x, &mut q8_k);
        for (x, block) in x.chunks(256).zip(&q8_k) {
            check_codes(x, block.d, &block.qs);
            for (k, qs) in block.qs.chunks(16).enumerate() {
                let sum: i32 = qs.iter().map(|&q| i32::from(q)).sum();
                prop_assert_eq!(i32::from(block.bsums[k]), sum);
            }
        }
    }

    #[test]
    fn q8_0_is_within_half_a_step(seed in any::<u64>()) {
        let x = noise(64, seed);
        let mut bytes = vec![0; 68];
        encoder(GgmlType::Q8_0).unwrap()(&x, &mut bytes);
        let mut decoded = vec![0.0; 64];
        decode_row(GgmlType::Q8_0, &bytes, &mut decoded);
        for (x, y) in x.chunks(32).zip(decoded.chunks(32)) {
            let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (&x, &y) in x.iter().zip(y) {
                // Half a step, and the rounding of the scale to a half: 2^-11 of the value.
                prop_assert!((x - y).abs() <= amax * (0.5 / 127.0 + 1.01 / 2048.0), "{} {}", x, y);
            }
        }
    }
}

#[test]
fn blocks_of_zeros_and_of_damage_keep_their_meaning() {
    let quantized = |first: f32| {
        let mut x = [0.0; 32];
        x[0] = first;
        let mut out = [ActQ8 {
            d: 9.0,
            qs: [9; 32],
        }];
        quantize_q8(&x, &mut out);
        out[0]
    };
    assert_eq!(quantized(0.0), ActQ8::ZERO);
    // 127 divided by it overflows.
    assert_eq!(quantized(1e-37), ActQ8::ZERO);
    assert_eq!(quantized(-f32::MAX).qs[0], -127);
    for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let block = quantized(damage);
        assert!(block.d.is_nan(), "{damage}");
        assert!(
            dot(GgmlType::Q8_0, &[1; 34], &Activation::Q8(&[block])).is_nan(),
            "{damage}"
        );
    }
}
