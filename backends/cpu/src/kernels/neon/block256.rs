//! Types of 256 elements a block: Q2_K, Q4_K, Q6_K and IQ2_XXS.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use ds4_formats::quant::{
    BlockIq2Xxs, BlockQ2K, BlockQ4K, BlockQ6K, even_signs, f16_to_f32, iq2_xxs_grid,
};

use super::{ROWS, Rows, dot, row_dots, store, sums_of_lanes};
use crate::kernels::activation::{q8k_scales, q8k_sums};
use crate::kernels::{Job, RowPair, Scratch};
use crate::path::Cpu;

/// A block taken apart: element `e` is `d * scales[e / 16] * codes[e] - dmin * mins[e / 16]`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Codes {
    pub(super) codes: [i8; 256],
    pub(super) scales: [i32; 16],
    pub(super) mins: [i32; 16],
    pub(super) d: f32,
    pub(super) dmin: f32,
}

impl Codes {
    pub(super) const ZERO: Codes = Codes {
        codes: [0; 256],
        scales: [0; 16],
        mins: [0; 16],
        d: 0.0,
        dmin: 0.0,
    };
}

/// A type of 256 elements a block.
pub(super) trait Type256 {
    /// The block as it lies in the file, of alignment 1.
    type Block;
    /// Whether `mins` and `dmin` are written.
    const HAS_MIN: bool;

    /// Takes a block apart.
    ///
    /// # Safety
    /// The machine has NEON.
    unsafe fn unpack(block: &Self::Block, out: &mut Codes);
}

/// Sixteen bytes as integers of 32 bits, in order.
///
/// # Safety
/// The machine has NEON, and there are 16 integers to write.
#[inline(always)]
unsafe fn widen(bytes: int8x16_t, out: *mut i32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        vst1q_s32(out, vmovl_s16(vget_low_s16(low)));
        vst1q_s32(out.add(4), vmovl_high_s16(low));
        vst1q_s32(out.add(8), vmovl_s16(vget_low_s16(high)));
        vst1q_s32(out.add(12), vmovl_high_s16(high));
    }
}

pub(super) struct Q2K;

impl Type256 for Q2K {
    type Block = BlockQ2K;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn unpack(block: &BlockQ2K, out: &mut Codes) {
        // SAFETY: the caller's promise; loads and stores are within the arrays.
        unsafe {
            out.d = f16_to_f32(block.d);
            out.dmin = f16_to_f32(block.dmin);
            let scales = vld1q_u8(block.scales.as_ptr());
            let low = vandq_u8(scales, vdupq_n_u8(15));
            widen(vreinterpretq_s8_u8(low), out.scales.as_mut_ptr());
            let high = vshrq_n_u8::<4>(scales);
            widen(vreinterpretq_s8_u8(high), out.mins.as_mut_ptr());
            let mask = vdupq_n_u8(3);
            for i in 0..4 {
                // Sixteen bytes hold elements of four groups of 32.
                let q = vld1q_u8(block.qs.as_ptr().add(16 * i));
                let at = 128 * (i / 2) + 16 * (i % 2);
                let to = out.codes.as_mut_ptr().add(at).cast::<u8>();
                vst1q_u8(to, vandq_u8(q, mask));
                vst1q_u8(to.add(32), vandq_u8(vshrq_n_u8::<2>(q), mask));
                vst1q_u8(to.add(64), vandq_u8(vshrq_n_u8::<4>(q), mask));
                vst1q_u8(to.add(96), vshrq_n_u8::<6>(q));
            }
        }
    }
}

pub(super) struct Q4K;

impl Type256 for Q4K {
    type Block = BlockQ4K;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn unpack(block: &BlockQ4K, out: &mut Codes) {
        // SAFETY: the caller's promise; loads and stores are within the arrays.
        unsafe {
            out.d = f16_to_f32(block.d);
            out.dmin = f16_to_f32(block.dmin);
            // `BlockQ4K::scale_min` for four sub-blocks at a time.
            let (words, _) = block.scales.as_chunks::<4>();
            let [a, b, c] = [0, 1, 2].map(|i| u32::from_le_bytes(words[i]));
            let (ones, twos, nibbles) = (0x3f3f_3f3f, 0x3030_3030, 0x0f0f_0f0f);
            let scales = [a & ones, (c & nibbles) | ((a >> 2) & twos)];
            let mins = [b & ones, ((c >> 4) & nibbles) | ((b >> 2) & twos)];
            for (from, to) in [(scales, &mut out.scales), (mins, &mut out.mins)] {
                let eight = vcreate_s8(u64::from(from[0]) | u64::from(from[1]) << 32);
                // A sub-block of 32 is two of 16.
                let twice = vcombine_s8(vzip1_s8(eight, eight), vzip2_s8(eight, eight));
                widen(twice, to.as_mut_ptr());
            }
            let mask = vdupq_n_u8(15);
            for i in 0..8 {
                let q = vld1q_u8(block.qs.as_ptr().add(16 * i));
                let at = 64 * (i / 2) + 16 * (i % 2);
                let to = out.codes.as_mut_ptr().add(at).cast::<u8>();
                vst1q_u8(to, vandq_u8(q, mask));
                vst1q_u8(to.add(32), vshrq_n_u8::<4>(q));
            }
        }
    }
}

pub(super) struct Q6K;

impl Type256 for Q6K {
    type Block = BlockQ6K;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn unpack(block: &BlockQ6K, out: &mut Codes) {
        // SAFETY: the caller's promise; loads and stores are within the arrays.
        unsafe {
            out.d = f16_to_f32(block.d);
            widen(vld1q_s8(block.scales.as_ptr()), out.scales.as_mut_ptr());
            let (nibble, two) = (vdupq_n_u8(15), vdupq_n_u8(0x30));
            let centre = vdupq_n_s8(32);
            for i in 0..4 {
                let (n, half) = (i / 2, 16 * (i % 2));
                let high = vld1q_u8(block.qh.as_ptr().add(32 * n + half));
                let low = block.ql.as_ptr().add(64 * n + half);
                let (a, b) = (vld1q_u8(low), vld1q_u8(low.add(32)));
                let codes = [
                    (vandq_u8(a, nibble), vshlq_n_u8::<4>(high)),
                    (vandq_u8(b, nibble), vshlq_n_u8::<2>(high)),
                    (vshrq_n_u8::<4>(a), high),
                    (vshrq_n_u8::<4>(b), vshrq_n_u8::<2>(high)),
                ];
                for (r, (low, high)) in codes.into_iter().enumerate() {
                    let code = vreinterpretq_s8_u8(vorrq_u8(low, vandq_u8(high, two)));
                    let to = out.codes.as_mut_ptr().add(128 * n + 32 * r + half);
                    vst1q_s8(to, vsubq_s8(code, centre));
                }
            }
        }
    }
}

pub(super) struct Iq2Xxs;

/// Byte `j` of entry `s` is 255 where the `j`-th sign of code `s` is negative.
static SIGNS: [u64; 128] = {
    let mut table = [0; 128];
    let mut code = 0;
    while code < 128 {
        let signs = even_signs(code as u8);
        let mut j = 0;
        while j < 8 {
            if (signs >> j) & 1 != 0 {
                table[code] |= 0xff << (8 * j);
            }
            j += 1;
        }
        code += 1;
    }
    table
};

impl Type256 for Iq2Xxs {
    type Block = BlockIq2Xxs;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn unpack(block: &BlockIq2Xxs, out: &mut Codes) {
        // SAFETY: the caller's promise; loads and stores are within the arrays, and indices of 8
        // and 7 bits within the tables.
        unsafe {
            out.d = f16_to_f32(block.d) / 8.0;
            let grid = iq2_xxs_grid().as_ptr().cast::<u8>();
            for (i, [indices, signs]) in block.groups.iter().enumerate() {
                let (indices, signs) = (indices.get() as usize, signs.get() as usize);
                let scale = 2 * (signs >> 28) as i32 + 1;
                out.scales[2 * i] = scale;
                out.scales[2 * i + 1] = scale;
                for half in 0..2 {
                    let row = |l: usize| vld1_u8(grid.add(8 * ((indices >> (8 * l)) & 255)));
                    let sign = |l: usize| vcreate_u8(SIGNS[(signs >> (7 * l)) & 127]);
                    let (a, b) = (2 * half, 2 * half + 1);
                    let grid = vcombine_u8(row(a), row(b));
                    let negative = vcombine_u8(sign(a), sign(b));
                    // All ones is -1: exclusive or, then less -1, negates.
                    let code = vsubq_u8(veorq_u8(grid, negative), negative);
                    let to = out.codes.as_mut_ptr().add(32 * i + 16 * half);
                    vst1q_u8(to.cast(), code);
                }
            }
        }
    }
}

/// The sum of the products of a block with its scales, spread over four lanes.
///
/// # Safety
/// The machine has the dot products of ARMv8.2, and there are 256 activation codes.
#[inline(always)]
unsafe fn scaled_sum(block: &Codes, codes: *const i8) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = vdupq_n_s32(0);
        for i in 0..4 {
            // Loops, since closures are no part of the function that has the instructions.
            let mut products = [vdupq_n_s32(0); 4];
            for (j, product) in products.iter_mut().enumerate() {
                let at = 64 * i + 16 * j;
                let w = vld1q_s8(block.codes.as_ptr().add(at));
                *product = dot(*product, w, vld1q_s8(codes.add(at)));
            }
            let scales = vld1q_s32(block.scales.as_ptr().add(4 * i));
            sum = vmlaq_s32(sum, sums_of_lanes(products), scales);
        }
        sum
    }
}

/// The sum of the mins with the activations' negated sums of 16, spread over four lanes.
///
/// # Safety
/// The machine has NEON, and there are 16 sums.
#[inline(always)]
pub(super) unsafe fn min_sum(mins: &[i32; 16], sums: *const i32) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = vdupq_n_s32(0);
        for i in 0..4 {
            let mins = vld1q_s32(mins.as_ptr().add(4 * i));
            sum = vmlaq_s32(sum, mins, vld1q_s32(sums.add(4 * i)));
        }
        sum
    }
}

/// Rows of blocks of such a type.
struct Of256<T>(PhantomData<T>);

impl<T: Type256> Rows for Of256<T> {
    #[inline(always)]
    unsafe fn products<const R: usize>(
        job: &Job<'_>,
        rows: [*const u8; ROWS],
        pairs: [RowPair; R],
        o: usize,
        n: usize,
    ) {
        // SAFETY: the caller's promise: all rows have as many blocks, of alignment 1.
        unsafe {
            let acts = pairs.map(|pair| job.act(pair));
            let mut sums = [vdupq_n_f32(0.0); R];
            let mut blocks = [Codes::ZERO; ROWS];
            for b in 0..job.n_in / 256 {
                for (row, block) in rows.iter().zip(&mut blocks) {
                    T::unpack(&*row.cast::<T::Block>().add(b), block);
                }
                let d = blocks.each_ref().map(|block| block.d);
                let dmin = blocks.each_ref().map(|block| block.dmin);
                for r in 0..R {
                    let codes: *const i8 = acts[r].add(256 * b).cast();
                    let mut products = [vdupq_n_s32(0); ROWS];
                    for (product, block) in products.iter_mut().zip(&blocks) {
                        *product = scaled_sum(block, codes);
                    }
                    let products = vcvtq_f32_s32(sums_of_lanes(products));
                    let mut block_sum = vmulq_f32(vld1q_f32(d.as_ptr()), products);
                    if T::HAS_MIN {
                        let negated: *const i32 = acts[r].add(q8k_sums(job.n_in) + 64 * b).cast();
                        let mut mins = [vdupq_n_s32(0); ROWS];
                        for (min, block) in mins.iter_mut().zip(&blocks) {
                            *min = min_sum(&block.mins, negated);
                        }
                        let mins = vcvtq_f32_s32(sums_of_lanes(mins));
                        block_sum = vfmaq_f32(block_sum, vld1q_f32(dmin.as_ptr()), mins);
                    }
                    let scale = *acts[r].add(q8k_scales(job.n_in) + 4 * b).cast::<f32>();
                    sums[r] = vfmaq_n_f32(sums[r], block_sum, scale);
                }
            }
            for r in 0..R {
                store(sums[r], job.out(pairs[r], o), n);
            }
        }
    }
}

macro_rules! entries {
    ($($name:ident($ty:ty))*) => {
        $(
            /// # Safety
            /// As [`crate::kernels::RowDots`].
            #[target_feature(enable = "neon,dotprod")]
            pub(super) unsafe fn $name(_: Cpu, job: &Job<'_>, _: &mut Scratch) {
                // SAFETY: the caller's promise; the instructions are enabled here.
                unsafe { row_dots::<Of256<$ty>>(job) }
            }
        )*
    };
}

entries! {
    q2_k(Q2K)
    q4_k(Q4K)
    q6_k(Q6K)
    iq2_xxs(Iq2Xxs)
}
