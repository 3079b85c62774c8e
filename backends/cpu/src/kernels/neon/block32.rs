//! Types of 32 elements a block: Q8_0 and MXFP4.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use ds4_formats::quant::{BlockMxfp4, BlockQ8_0, MXFP4_DOUBLED};

use super::{ROWS, Rows, dot, floats, row_dots, store, sums_of_lanes};
use crate::kernels::activation::q8_scales;
use crate::kernels::{Job, RowPair, Scratch};
use crate::path::Cpu;

/// A type of 32 elements a block.
pub(super) trait Type32 {
    /// Bytes of a block.
    const BYTES: usize;

    /// The codes, in natural order.
    ///
    /// # Safety
    /// A block lies there, and the machine has NEON.
    unsafe fn codes(block: *const u8) -> [int8x16_t; 2];

    /// The scales of four blocks.
    ///
    /// # Safety
    /// As [`Type32::codes`].
    unsafe fn scales(blocks: [*const u8; ROWS]) -> float32x4_t;
}

pub(super) struct Q8_0;

impl Type32 for Q8_0 {
    const BYTES: usize = size_of::<BlockQ8_0>();

    #[inline(always)]
    unsafe fn codes(block: *const u8) -> [int8x16_t; 2] {
        // SAFETY: two bytes of scale, then 32 codes.
        unsafe {
            [
                vld1q_s8(block.add(2).cast()),
                vld1q_s8(block.add(18).cast()),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; ROWS]) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let d = blocks.map(|block| u16::from_le_bytes(*block.cast::<[u8; 2]>()));
            floats(vld1_u16(d.as_ptr()))
        }
    }
}

pub(super) struct Mxfp4;

impl Type32 for Mxfp4 {
    const BYTES: usize = size_of::<BlockMxfp4>();

    #[inline(always)]
    unsafe fn codes(block: *const u8) -> [int8x16_t; 2] {
        // SAFETY: a byte of scale, then 16 of nibbles: the low ones are the first half.
        unsafe {
            let levels = vld1q_s8(MXFP4_DOUBLED.as_ptr());
            let nibbles = vld1q_u8(block.add(1));
            let low = vandq_u8(nibbles, vdupq_n_u8(15));
            [
                vqtbl1q_s8(levels, low),
                vqtbl1q_s8(levels, vshrq_n_u8::<4>(nibbles)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; ROWS]) -> float32x4_t {
        // SAFETY: the caller's promise; a block has alignment 1.
        unsafe {
            let scales = blocks.map(|block| (*block.cast::<BlockMxfp4>()).half_scale());
            vld1q_f32(scales.as_ptr())
        }
    }
}

/// Rows of blocks of such a type.
struct Of32<T>(PhantomData<T>);

impl<T: Type32> Rows for Of32<T> {
    #[inline(always)]
    unsafe fn products<const R: usize>(
        job: &Job<'_>,
        rows: [*const u8; ROWS],
        pairs: [RowPair; R],
        o: usize,
        n: usize,
    ) {
        // SAFETY: the caller's promise: all rows have as many blocks.
        unsafe {
            let acts = pairs.map(|pair| job.act(pair));
            let mut sums = [vdupq_n_f32(0.0); R];
            for b in 0..job.n_in / 32 {
                let blocks = rows.map(|row| row.add(T::BYTES * b));
                let scales = T::scales(blocks);
                let mut weights = [[vdupq_n_s8(0); 2]; ROWS];
                for (weights, block) in weights.iter_mut().zip(blocks) {
                    *weights = T::codes(block);
                }
                for r in 0..R {
                    let codes: *const i8 = acts[r].add(32 * b).cast();
                    let (low, high) = (vld1q_s8(codes), vld1q_s8(codes.add(16)));
                    // Loops, since closures are no part of the function that has the instructions.
                    let mut products = [vdupq_n_s32(0); ROWS];
                    for (product, [a, b]) in products.iter_mut().zip(weights) {
                        *product = dot(dot(*product, a, low), b, high);
                    }
                    let scale = *acts[r].add(q8_scales(job.n_in) + 4 * b).cast::<f32>();
                    let products = vcvtq_f32_s32(sums_of_lanes(products));
                    sums[r] = vfmaq_f32(sums[r], products, vmulq_n_f32(scales, scale));
                }
            }
            for r in 0..R {
                store(sums[r], job.out(pairs[r], o), n);
            }
        }
    }
}

/// # Safety
/// As [`crate::kernels::RowDots`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn q8_0(_: Cpu, job: &Job<'_>, _: &mut Scratch) {
    // SAFETY: the caller's promise; the instructions are enabled here.
    unsafe { row_dots::<Of32<Q8_0>>(job) }
}

/// # Safety
/// As [`crate::kernels::RowDots`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn mxfp4(_: Cpu, job: &Job<'_>, _: &mut Scratch) {
    // SAFETY: the caller's promise; the instructions are enabled here.
    unsafe { row_dots::<Of32<Mxfp4>>(job) }
}
