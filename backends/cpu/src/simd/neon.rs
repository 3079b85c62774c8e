//! Four 128-bit registers.

use std::arch::aarch64::*;

use super::{LANES, Lanes, Simd, intrinsics};

/// NEON with the dot products of ARMv8.2.
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

/// `sum` plus four products of signed bytes in each lane. The intrinsic, `vdotq_s32`, is not stable.
///
/// # Safety
///
/// The machine has the dot products of ARMv8.2.
#[inline(always)]
unsafe fn dot_product(mut sum: int32x4_t, x: int8x16_t, y: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only, and is there by the caller's
    // promise.
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {x:v}.16b, {y:v}.16b",
            sum = inout(vreg) sum,
            x = in(vreg) x,
            y = in(vreg) y,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Simd for Neon {
    type F = F;
    type I = [int32x4_t; 4];

    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;
    const HAS_BYTES: bool = true;
    const BYTE_BIAS: u8 = 0;

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

        fn load_f16(self, x: &Lanes<u16>) -> F {
            each!(i => {
                let halves = vld1_u16(x.as_ptr().add(4 * i));
                let floats: float32x4_t;
                // The intrinsic takes a type that is not stable.
                std::arch::asm!(
                    "fcvtl {floats:v}.4s, {halves:v}.4h",
                    floats = lateout(vreg) floats,
                    halves = in(vreg) halves,
                    options(pure, nomem, nostack, preserves_flags),
                );
                floats
            })
        }

        fn load_bf16(self, x: &Lanes<u16>) -> F {
            each!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x.as_ptr().add(4 * i)))))
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

        fn splat_int(self, x: i32) -> [int32x4_t; 4] {
            [vdupq_n_s32(x); 4]
        }

        fn dot_bytes(
            self,
            sum: [int32x4_t; 4],
            x: &Lanes<[u8; 4]>,
            y: [u8; 4]
        ) -> [int32x4_t; 4] {
            let y = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(y)));
            let mut sum = sum;
            for i in 0..4 {
                let x = vld1q_s8(x.as_ptr().add(4 * i).cast());
                sum[i] = dot_product(sum[i], x, y);
            }
            sum
        }

        fn float(self, x: [int32x4_t; 4]) -> F {
            each!(i => vcvtq_f32_s32(x[i]))
        }

        fn store_bytes(self, x: F, out: &mut Lanes<u8>) -> bool {
            let mut exact = true;
            let mut bytes = [0i32; LANES];
            for i in 0..4 {
                let whole = vcvtnq_s32_f32(x[i]);
                let whole = vmaxq_s32(vminq_s32(whole, vdupq_n_s32(127)), vdupq_n_s32(-128));
                exact &= vminvq_u32(vceqq_f32(vcvtq_f32_s32(whole), x[i])) != 0;
                vst1q_s32(bytes.as_mut_ptr().add(4 * i), whole);
            }
            for i in 0..LANES {
                out[i] = bytes[i] as u8;
            }
            exact
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
