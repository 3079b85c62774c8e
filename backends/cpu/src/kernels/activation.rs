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

use ds4_formats::quant::{ActQ8, BlockQ8K, quantize_q8, quantize_q8_k};

/// Order of the codes within 64 (Q8) or 256 (Q8K) elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    pub(crate) fn write(self, x: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(x.len()));
        match self {
            Form::F32 => {
                for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *out = x.to_ne_bytes();
                }
            }
            Form::Q8(order) => write_q8(order, x, out),
            Form::Q8K(order) => write_q8k(order, x, out),
        }
    }
}

fn write_q8(order: Order, x: &[f32], out: &mut [u8]) {
    let (codes, rest) = out.split_at_mut(q8_scales(x.len()));
    let (scales, sums) = rest.split_at_mut(q8_sums(x.len()) - q8_scales(x.len()));
    let blocks = codes.as_chunks_mut::<64>().0.iter_mut();
    let scales = scales.as_chunks_mut::<8>().0.iter_mut();
    let sums = sums.as_chunks_mut::<8>().0.iter_mut();
    for (((x, codes), scales), sums) in x.chunks(64).zip(blocks).zip(scales).zip(sums) {
        let mut blocks = [ActQ8::ZERO; 2];
        quantize_q8(x, &mut blocks[..x.len() / 32]);
        for (b, block) in blocks.iter().enumerate() {
            for (e, &q) in block.qs.iter().enumerate() {
                let at = match order {
                    Order::Pairs => 8 * (e / 4) + 4 * b + e % 4,
                    _ => 32 * b + e,
                };
                codes[at] = q as u8;
            }
            scales[4 * b..][..4].copy_from_slice(&block.d.to_ne_bytes());
            let sum: i32 = block.qs.iter().map(|&q| i32::from(q)).sum();
            sums[4 * b..][..4].copy_from_slice(&(-128 * sum).to_ne_bytes());
        }
    }
}

fn write_q8k(order: Order, x: &[f32], out: &mut [u8]) {
    let n = x.len();
    let (codes, sums) = out.split_at_mut(q8k_sums(n));
    let (sums, scales) = sums.split_at_mut(n / 4);
    let blocks = codes.as_chunks_mut::<256>().0.iter_mut();
    let sums = sums.as_chunks_mut::<64>().0.iter_mut();
    let scales = scales.as_chunks_mut::<4>().0.iter_mut();
    for (((x, codes), sums), scale) in x
        .as_chunks::<256>()
        .0
        .iter()
        .zip(blocks)
        .zip(sums)
        .zip(scales)
    {
        let mut block = [BlockQ8K::ZERO];
        quantize_q8_k(x, &mut block);
        let [block] = block;
        for (e, &q) in block.qs.iter().enumerate() {
            let at = match order {
                Order::Planes => 64 * (e % 4) + e / 4,
                _ => e,
            };
            codes[at] = q as u8;
        }
        for (sum, s) in sums.as_chunks_mut::<4>().0.iter_mut().zip(block.bsums) {
            *sum = (-i32::from(s)).to_ne_bytes();
        }
        *scale = block.d.to_ne_bytes();
    }
}
