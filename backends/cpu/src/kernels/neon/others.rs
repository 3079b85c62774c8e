//! The types without kernels of their own: unpacked by plain Rust, multiplied by dot products.

use std::arch::aarch64::*;

use super::dot;
use crate::kernels::portable::*;

/// Four partial sums.
#[derive(Clone, Copy)]
struct Lanes4;

impl Inner for Lanes4 {
    type Sum = float32x4_t;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: inside an entry point of this path.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn add_256<const HAS_MIN: bool>(
        sum: float32x4_t,
        block: &Unpacked,
        codes: *const i8,
        sums: *const i32,
        scale: f32,
    ) -> float32x4_t {
        // SAFETY: the caller has 256 codes and 16 sums; inside an entry point of this path.
        unsafe {
            let mut block_sum = vdupq_n_f32(0.0);
            for i in 0..4 {
                let mut products = [vdupq_n_s32(0); 4];
                for (j, product) in products.iter_mut().enumerate() {
                    let at = 64 * i + 16 * j;
                    let w = vld1q_s8(block.codes.as_ptr().add(at));
                    *product = dot(*product, w, vld1q_s8(codes.add(at)));
                }
                let products = vcvtq_f32_s32(super::sums_of_lanes(products));
                let scales = vld1q_f32(block.scale.as_ptr().add(4 * i));
                block_sum = vfmaq_f32(block_sum, products, scales);
                if HAS_MIN {
                    let sums = vcvtq_f32_s32(vld1q_s32(sums.add(4 * i)));
                    let mins = vld1q_f32(block.min.as_ptr().add(4 * i));
                    block_sum = vfmaq_f32(block_sum, sums, mins);
                }
            }
            vfmaq_n_f32(sum, block_sum, scale)
        }
    }

    #[inline(always)]
    unsafe fn add_32(
        sum: float32x4_t,
        block: &[i8; 32],
        codes: *const i8,
        scale: f32,
    ) -> float32x4_t {
        // SAFETY: the caller has 32 codes; inside an entry point of this path.
        unsafe {
            let product = dot(vdupq_n_s32(0), vld1q_s8(block.as_ptr()), vld1q_s8(codes));
            let (w, a) = (block.as_ptr().add(16), codes.add(16));
            let product = dot(product, vld1q_s8(w), vld1q_s8(a));
            vfmaq_n_f32(sum, vcvtq_f32_s32(product), scale)
        }
    }

    #[inline(always)]
    unsafe fn total(sum: float32x4_t) -> f32 {
        // SAFETY: inside an entry point of this path.
        unsafe { vaddvq_f32(sum) }
    }
}

natural_kernels! {
    inner = Lanes4;
    #[target_feature(enable = "neon,dotprod")]
    blocks of 32 {
        IQ4_NL = iq4_nl(Iq4Nl),
    }
    blocks of 256 {
        Q3_K = q3_k(Q3K),
        Q5_K = q5_k(Q5K),
        IQ2_XS = iq2_xs(Iq2Xs),
        IQ2_S = iq2_s(Iq2S),
        IQ3_XXS = iq3_xxs(Iq3Xxs),
        IQ3_S = iq3_s(Iq3S),
        IQ1_S = iq1_s(Iq1S),
        IQ1_M = iq1_m(Iq1M),
        IQ4_XS = iq4_xs(Iq4Xs),
    }
}
