//! Activation rows in the forms that kernels take.
//!
//! Codes, scales and rounding are those of `ds4_formats::quant::{quantize_q8, quantize_q8_k}`; what
//! differs is where they lie. One row of `n` elements is
//!
//! ```text
//! Q8:   codes i8 [n, padded to 64] | scales f32 [n / 32, padded to even] |
//!       -128 times the sum of 32 codes i32 [n / 32, padded to even]
//! Q8K:  codes i8 [n] | negated sums of 16 codes i32 [n / 16] | scales f32 [n / 256]
//! ```
//!
//! padded with zeros to whole 64-byte lines, so that padding multiplies to nothing.

use zerocopy::IntoBytes;

use crate::path::Cpu;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

/// Order of the codes within 64 (Q8) or 256 (Q8K) elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
// Other machines than x86-64 take codes as they are.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) enum Order {
    /// As they are.
    Natural,
    /// Of two blocks of 32, groups of 4 codes by turns: byte `8 i + 4 b + j` is element
    /// `4 i + j` of block `b`. Even 32-bit lanes of a vector then belong to the first block, odd
    /// ones to the second.
    Pairs,
    /// Four planes of 64: byte `64 k + b` is element `4 b + k`. In a 512-bit vector of any plane,
    /// 32-bit lane `i` holds elements `16 i .. 16 i + 16` only, so four products accumulate into
    /// one vector of sums of 16.
    Planes,
}

/// What a kernel takes as activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// f32 as they are.
    F32,
    /// Codes with a scale for every 32.
    Q8(Order),
    /// Codes with a scale for every 256, and sums.
    Q8K(Order),
}

/// Where the scales of a Q8 row of `n` elements begin, in bytes.
#[inline(always)]
pub(crate) const fn q8_scales(n: usize) -> usize {
    n.next_multiple_of(64)
}

/// Where the multiplied sums of a Q8 row of `n` elements begin, in bytes.
#[inline(always)]
pub(crate) const fn q8_sums(n: usize) -> usize {
    n.next_multiple_of(64) + n.div_ceil(64) * 8
}

/// Where the sums of a Q8K row of `n` elements begin, in bytes.
#[inline(always)]
pub(crate) const fn q8k_sums(n: usize) -> usize {
    n
}

/// Where the scales of a Q8K row of `n` elements begin, in bytes.
#[inline(always)]
pub(crate) const fn q8k_scales(n: usize) -> usize {
    n + n / 4
}

impl Form {
    /// Bytes of a row of `n` elements.
    pub(crate) const fn row_bytes(self, n: usize) -> usize {
        match self {
            Form::F32 => 4 * n,
            Form::Q8(_) => (q8_sums(n) + n.div_ceil(64) * 8).next_multiple_of(64),
            Form::Q8K(_) => (q8k_scales(n) + n / 64).next_multiple_of(64),
        }
    }

    /// Writes one row in this form.
    ///
    /// # Panics
    /// If `x` is not whole blocks or `out` not [`Form::row_bytes`] long.
    pub(crate) fn write(self, cpu: Cpu, x: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(x.len()));
        match self {
            Form::F32 => out.copy_from_slice(x.as_bytes()),
            Form::Q8(order) => dispatch!(cpu, write_q8(x: &[f32], order: Order, out: &mut [u8])),
            Form::Q8K(order) => dispatch!(cpu, write_q8k(x: &[f32], order: Order, out: &mut [u8])),
        }
    }
}

/// Quantises one block as `ds4_formats::quant` does: returns its scale, the largest magnitude over
/// 127; NaN when an element is not finite, 0 when all are too small for the inverse.
#[inline(always)]
fn quantise<S: Simd, const N: usize>(s: S, x: &[f32; N], codes: &mut [i8; N]) -> f32 {
    let chunks = x.as_chunks::<LANES>().0;
    let mut largest = s.zero();
    let mut zeros = s.zero();
    for x in chunks {
        let x = s.load(x);
        largest = s.max(s.abs(x), largest);
        // 0 times what is not finite is NaN.
        zeros = s.fma(x, s.zero(), zeros);
    }
    let largest = s.largest(largest);
    let inverse = 127.0 / largest;
    let finite = s.sum(zeros) == 0.0;
    if !finite || !inverse.is_finite() {
        codes.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    for (x, codes) in chunks.iter().zip(codes.as_chunks_mut::<LANES>().0) {
        let code = s.round(s.mul(s.load(x), s.splat(inverse)));
        let mut bytes = [0; LANES];
        s.store_bytes(code, &mut bytes);
        *codes = bytes.map(|byte| byte as i8);
    }
    largest / 127.0
}

/// The sum of `N` codes.
#[inline(always)]
fn sum<const N: usize>(codes: &[i8; N]) -> i32 {
    let mut sum = 0;
    for code in codes {
        sum += i32::from(*code);
    }
    sum
}

#[inline(always)]
fn write_q8<S: Simd>(s: S, x: &[f32], order: Order, out: &mut [u8]) {
    let (codes, rest) = out.split_at_mut(q8_scales(x.len()));
    let (scales, sums) = rest.split_at_mut(q8_sums(x.len()) - q8_scales(x.len()));
    let pairs = codes.as_chunks_mut::<64>().0.iter_mut();
    let scales = scales.as_chunks_mut::<8>().0.iter_mut();
    let sums = sums.as_chunks_mut::<8>().0.iter_mut();
    for (((x, codes), scales), sums) in x.chunks(64).zip(pairs).zip(scales).zip(sums) {
        let mut blocks = [[0; 32]; 2];
        scales.fill(0);
        sums.fill(0);
        for (b, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let scale = quantise(s, x, &mut blocks[b]);
            scales[4 * b..][..4].copy_from_slice(&scale.to_ne_bytes());
            sums[4 * b..][..4].copy_from_slice(&(-128 * sum(&blocks[b])).to_ne_bytes());
        }
        let words = codes.as_chunks_mut::<4>().0;
        for (b, block) in blocks.iter().enumerate() {
            for (i, word) in block.as_chunks::<4>().0.iter().enumerate() {
                let at = match order {
                    Order::Pairs => 2 * i + b,
                    _ => 8 * b + i,
                };
                words[at] = word.map(|code| code as u8);
            }
        }
    }
}

#[inline(always)]
fn write_q8k<S: Simd>(s: S, x: &[f32], order: Order, out: &mut [u8]) {
    let n = x.len();
    let (codes, sums) = out.split_at_mut(q8k_sums(n));
    let (sums, scales) = sums.split_at_mut(n / 4);
    let blocks = codes.as_chunks_mut::<256>().0.iter_mut();
    let sums = sums.as_chunks_mut::<64>().0.iter_mut();
    let scales = scales.as_chunks_mut::<4>().0.iter_mut();
    let x = x.as_chunks::<256>().0.iter();
    for (((x, out), sums), scale) in x.zip(blocks).zip(sums).zip(scales) {
        let mut codes = [0; 256];
        *scale = quantise(s, x, &mut codes).to_ne_bytes();
        let sixteens = codes.as_chunks::<16>().0;
        for (out, codes) in sums.as_chunks_mut::<4>().0.iter_mut().zip(sixteens) {
            *out = (-sum(codes)).to_ne_bytes();
        }
        for (d, codes) in sixteens.iter().enumerate() {
            match order {
                Order::Planes => {
                    for k in 0..4 {
                        for j in 0..4 {
                            out[64 * k + 4 * d + j] = codes[4 * j + k] as u8;
                        }
                    }
                }
                _ => out[16 * d..][..16].copy_from_slice(&codes.map(|code| code as u8)),
            }
        }
    }
}
