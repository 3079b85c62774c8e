//! Four 128-bit registers.

use std::arch::aarch64::*;

use half::f16;

use super::{LANES, Lanes, Simd, intrinsics};

/// NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    ///
    /// The machine has these instructions.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Neon {
        Neon(())
    }
}

type F = [float32x4_t; 4];

/// `expression` for each of the four registers.
macro_rules! each {
    ($i:ident => $expression:expr) => {{
        let mut out = [vdupq_n_f32(0.0); 4];
        for $i in 0..4 {
            out[$i] = $expression;
        }
        out
    }};
}

/// Four f32 rounded to bf16.
///
/// # Safety
///
/// The machine has NEON.
#[inline(always)]
unsafe fn round_bf16(x: float32x4_t) -> uint16x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        // Half a step less one, plus the last kept bit, carries exactly when rounding up is due.
        let bits = vreinterpretq_u32_f32(x);
        let last = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
        // A carry would turn some NaN into a zero; a quiet one stands for them all.
        let rounded = vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7fc0_0000));
        vshrn_n_u32::<16>(rounded)
    }
}

impl Simd for Neon {
    type F = F;

    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    intrinsics! {
        fn splat(self, x: f32) -> F {
            [vdupq_n_f32(x); 4]
        }

        fn load(self, x: &Lanes) -> F {
            each!(i => vld1q_f32(x.as_ptr().add(4 * i)))
        }

        fn store(self, x: F, out: &mut Lanes) -> () {
            for i in 0..4 {
                vst1q_f32(out.as_mut_ptr().add(4 * i), x[i]);
            }
        }

        fn load_bf16(self, x: &Lanes<u16>) -> F {
            each!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x.as_ptr().add(4 * i)))))
        }

        fn load_f16(self, x: &Lanes<u16>) -> F {
            // The conversion of four at a time has no stable intrinsic.
            let mut lanes = [0.0; LANES];
            for i in 0..LANES {
                lanes[i] = f16::from_bits(x[i]).to_f32();
            }
            self.load(&lanes)
        }

        fn store_bf16(self, x: F, out: &mut Lanes<u16>) -> () {
            for i in 0..4 {
                vst1_u16(out.as_mut_ptr().add(4 * i), round_bf16(x[i]));
            }
        }

        fn load_pairs(self, x: &[u16; 2 * LANES]) -> F {
            each!(i => vreinterpretq_f32_u16(vld1q_u16(x.as_ptr().add(8 * i))))
        }

        fn split_bf16(self, pairs: F) -> (F, F) {
            let mask = vdupq_n_u32(0xffff_0000);
            (
                each!(i => vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(pairs[i])))),
                each!(i => vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs[i]), mask))),
            )
        }

        fn add(self, a: F, b: F) -> F {
            each!(i => vaddq_f32(a[i], b[i]))
        }

        fn sub(self, a: F, b: F) -> F {
            each!(i => vsubq_f32(a[i], b[i]))
        }

        fn mul(self, a: F, b: F) -> F {
            each!(i => vmulq_f32(a[i], b[i]))
        }

        fn div(self, a: F, b: F) -> F {
            each!(i => vdivq_f32(a[i], b[i]))
        }

        fn fma(self, a: F, b: F, c: F) -> F {
            each!(i => vfmaq_f32(c[i], a[i], b[i]))
        }

        fn max(self, a: F, b: F) -> F {
            // Not `vmaxq`, which gives NaN when either is.
            each!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
        }

        fn min(self, a: F, b: F) -> F {
            each!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
        }

        fn sqrt(self, x: F) -> F {
            each!(i => vsqrtq_f32(x[i]))
        }

        fn abs(self, x: F) -> F {
            each!(i => vabsq_f32(x[i]))
        }

        fn exponent(self, x: F) -> F {
            let mask = vdupq_n_u32(0x7f80_0000);
            each!(i => vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x[i]), mask)))
        }

        fn round(self, x: F) -> F {
            each!(i => vrndnq_f32(x[i]))
        }

        fn exp2(self, n: F) -> F {
            each!(i => {
                let n = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(n))
            })
        }

        fn transpose(self, rows: [F; LANES]) -> [F; LANES] {
            let mut out = rows;
            // Blocks of 4 by 4: rows 4i.. and columns 4j.. become rows 4j.. and columns 4i...
            for i in 0..4 {
                for j in 0..4 {
                    let (a, b) = (rows[4 * i][j], rows[4 * i + 1][j]);
                    let (c, d) = (rows[4 * i + 2][j], rows[4 * i + 3][j]);
                    let ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
                    let ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
                    let cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
                    let cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
                    out[4 * j][i] = vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even));
                    out[4 * j + 1][i] = vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd));
                    out[4 * j + 2][i] = vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even));
                    out[4 * j + 3][i] = vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd));
                }
            }
            out
        }
    }
}
