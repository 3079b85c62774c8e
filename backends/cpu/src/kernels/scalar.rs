//! The scalar path.

use super::portable::*;

/// One sum, block after block.
#[derive(Clone, Copy)]
struct Plain;

/// The exact sum of `N` products of codes.
#[inline(always)]
fn product<const N: usize>(a: &[i8; N], b: &[i8; N]) -> i32 {
    let mut sum = 0;
    for i in 0..N {
        sum += i32::from(a[i]) * i32::from(b[i]);
    }
    sum
}

impl Inner for Plain {
    type Sum = f32;

    #[inline(always)]
    unsafe fn zero() -> f32 {
        0.0
    }

    #[inline(always)]
    unsafe fn add_256<const HAS_MIN: bool>(
        sum: f32,
        block: &Unpacked,
        codes: *const i8,
        sums: *const i32,
        scale: f32,
    ) -> f32 {
        // SAFETY: the caller has 256 codes and 16 sums.
        let (codes, sums) = unsafe { (&*codes.cast::<[i8; 256]>(), &*sums.cast::<[i32; 16]>()) };
        let (weights, codes) = (block.codes.as_chunks::<16>().0, codes.as_chunks::<16>().0);
        let mut block_sum = 0.0;
        for k in 0..16 {
            block_sum += block.scale[k] * product(&weights[k], &codes[k]) as f32;
            if HAS_MIN {
                block_sum += block.min[k] * sums[k] as f32;
            }
        }
        sum + scale * block_sum
    }

    #[inline(always)]
    unsafe fn add_32(sum: f32, block: &[i8; 32], codes: *const i8, scale: f32) -> f32 {
        // SAFETY: the caller has 32 codes.
        let codes = unsafe { &*codes.cast::<[i8; 32]>() };
        sum + scale * product(block, codes) as f32
    }

    #[inline(always)]
    unsafe fn total(sum: f32) -> f32 {
        sum
    }
}

natural_kernels! {
    inner = Plain;
    blocks of 32 {
        Q8_0 = q8_0(Q8_0),
        IQ4_NL = iq4_nl(Iq4Nl),
        MXFP4 = mxfp4(Mxfp4),
    }
    blocks of 256 {
        Q2_K = q2_k(Q2K),
        Q3_K = q3_k(Q3K),
        Q4_K = q4_k(Q4K),
        Q5_K = q5_k(Q5K),
        Q6_K = q6_k(Q6K),
        IQ2_XXS = iq2_xxs(Iq2Xxs),
        IQ2_XS = iq2_xs(Iq2Xs),
        IQ2_S = iq2_s(Iq2S),
        IQ3_XXS = iq3_xxs(Iq3Xxs),
        IQ3_S = iq3_s(Iq3S),
        IQ1_S = iq1_s(Iq1S),
        IQ1_M = iq1_m(Iq1M),
        IQ4_XS = iq4_xs(Iq4Xs),
    }
}
