//! Two 256-bit registers.

use std::arch::x86_64::*;

use super::{LANES, Lanes, Simd, intrinsics};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    ///
    /// The machine has these instructions.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx2 {
        Avx2(())
    }
}

/// The sum of eight lanes: halves, quarters, eighths.
///
/// # Safety
///
/// The machine has AVX.
#[inline(always)]
pub(super) unsafe fn sum(x: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// The [`sum`] of each of four vectors, to the bit.
///
/// # Safety
///
/// The machine has AVX.
#[inline(always)]
pub(super) unsafe fn sums(x: [__m256; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise; four f32 are four f32.
    unsafe {
        let mut v = [_mm_setzero_ps(); 4];
        for i in 0..4 {
            let high = _mm256_extractf128_ps::<1>(x[i]);
            v[i] = _mm_add_ps(_mm256_castps256_ps128(x[i]), high);
        }
        let a = _mm_add_ps(_mm_unpacklo_ps(v[0], v[1]), _mm_unpackhi_ps(v[0], v[1]));
        let b = _mm_add_ps(_mm_unpacklo_ps(v[2], v[3]), _mm_unpackhi_ps(v[2], v[3]));
        std::mem::transmute(_mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)))
    }
}

type F = (__m256, __m256);

/// An 8 by 8 transposition.
///
/// # Safety
///
/// The machine has AVX.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut a = r;
        for i in 0..4 {
            a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut b = a;
        for i in 0..2 {
            for half in 0..2 {
                let low = _mm256_castps_pd(a[4 * i + half]);
                let high = _mm256_castps_pd(a[4 * i + 2 + half]);
                b[4 * i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
                b[4 * i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
            }
        }
        let mut out = b;
        for j in 0..4 {
            out[j] = _mm256_permute2f128_ps::<0x20>(b[j], b[4 + j]);
            out[4 + j] = _mm256_permute2f128_ps::<0x31>(b[j], b[4 + j]);
        }
        out
    }
}

/// Eight f32 rounded to bf16 in the low halves of the lanes.
///
/// # Safety
///
/// The machine has AVX2.
#[inline(always)]
unsafe fn round_bf16(x: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        // Half a step less one, plus the last kept bit, carries exactly when rounding up is due.
        let bits = _mm256_castps_si256(x);
        let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let carry = _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, carry));
        // A carry would turn some NaN into a zero; a quiet one stands for them all.
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan)
    }
}

/// Sums of four products of signed bytes in each lane. The multiplication takes one side unsigned,
/// so signs move to the other; no byte is -128, and pairs stay below 2 * 127 * 127.
///
/// # Safety
///
/// The machine has AVX2.
#[inline(always)]
unsafe fn products_of_bytes(x: __m256i, y: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = (__m256i, __m256i);

    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;
    // Three instructions for 32 products of bytes are no faster than four of floats.
    const HAS_BYTES: bool = false;
    const BYTE_BIAS: u8 = 0;

    intrinsics! {
        fn splat(self, x: f32) -> F {
            (_mm256_set1_ps(x), _mm256_set1_ps(x))
        }

        fn load(self, x: &Lanes) -> F {
            (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8)))
        }

        fn store(self, x: F, out: &mut Lanes) -> () {
            _mm256_storeu_ps(out.as_mut_ptr(), x.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x.1);
        }

        fn load_f16(self, x: &Lanes<u16>) -> F {
            (
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())),
            )
        }

        fn load_bf16(self, x: &Lanes<u16>) -> F {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }

        fn store_bf16(self, x: F, out: &mut Lanes<u16>) -> () {
            let packed = _mm256_packus_epi32(round_bf16(x.0), round_bf16(x.1));
            // The pack works within 128-bit halves.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), packed)
        }

        fn load_pairs(self, x: &[u16; 2 * LANES]) -> F {
            (
                _mm256_castsi256_ps(_mm256_loadu_si256(x.as_ptr().cast())),
                _mm256_castsi256_ps(_mm256_loadu_si256(x.as_ptr().add(16).cast())),
            )
        }

        fn split_bf16(self, pairs: F) -> (F, F) {
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let (a, b) = (_mm256_castps_si256(pairs.0), _mm256_castps_si256(pairs.1));
            (
                (
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
                ),
                (
                    _mm256_castsi256_ps(_mm256_and_si256(a, mask)),
                    _mm256_castsi256_ps(_mm256_and_si256(b, mask)),
                ),
            )
        }

        fn add(self, a: F, b: F) -> F {
            (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1))
        }

        fn sub(self, a: F, b: F) -> F {
            (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1))
        }

        fn mul(self, a: F, b: F) -> F {
            (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1))
        }

        fn div(self, a: F, b: F) -> F {
            (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1))
        }

        fn fma(self, a: F, b: F, c: F) -> F {
            (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1))
        }

        fn max(self, a: F, b: F) -> F {
            (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1))
        }

        fn min(self, a: F, b: F) -> F {
            (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1))
        }

        fn sqrt(self, x: F) -> F {
            (_mm256_sqrt_ps(x.0), _mm256_sqrt_ps(x.1))
        }

        fn abs(self, x: F) -> F {
            let sign = _mm256_set1_ps(-0.0);
            (_mm256_andnot_ps(sign, x.0), _mm256_andnot_ps(sign, x.1))
        }

        fn exponent(self, x: F) -> F {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f80_0000));
            (_mm256_and_ps(x.0, mask), _mm256_and_ps(x.1, mask))
        }

        fn round(self, x: F) -> F {
            (
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x.0),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x.1),
            )
        }

        fn exp2(self, n: F) -> F {
            let bias = _mm256_set1_epi32(127);
            let (a, b) = (_mm256_cvtps_epi32(n.0), _mm256_cvtps_epi32(n.1));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(a, bias))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(b, bias))),
            )
        }

        fn splat_int(self, x: i32) -> (__m256i, __m256i) {
            (_mm256_set1_epi32(x), _mm256_set1_epi32(x))
        }

        fn dot_bytes(
            self,
            sum: (__m256i, __m256i),
            x: &Lanes<[u8; 4]>,
            y: [u8; 4]
        ) -> (__m256i, __m256i) {
            let y = _mm256_set1_epi32(i32::from_le_bytes(y));
            let x = [
                _mm256_loadu_si256(x.as_ptr().cast()),
                _mm256_loadu_si256(x.as_ptr().add(8).cast()),
            ];
            (
                _mm256_add_epi32(sum.0, products_of_bytes(x[0], y)),
                _mm256_add_epi32(sum.1, products_of_bytes(x[1], y)),
            )
        }

        fn float(self, x: (__m256i, __m256i)) -> F {
            (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1))
        }

        fn store_bytes(self, x: F, out: &mut Lanes<u8>) -> bool {
            let (a, b) = (_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let words = [_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)];
            let bytes = _mm_packs_epi16(words[0], words[1]);
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            // What saturated does not come back.
            let back = [bytes, _mm_srli_si128::<8>(bytes)];
            let a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(back[0]));
            let b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(back[1]));
            let lost = [
                _mm256_cmp_ps::<_CMP_NEQ_UQ>(a, x.0),
                _mm256_cmp_ps::<_CMP_NEQ_UQ>(b, x.1),
            ];
            _mm256_movemask_ps(_mm256_or_ps(lost[0], lost[1])) == 0
        }

        fn transpose(self, rows: [F; LANES]) -> [F; LANES] {
            let (mut top_left, mut top_right) = ([rows[0].0; 8], [rows[0].0; 8]);
            let (mut bottom_left, mut bottom_right) = (top_left, top_right);
            for i in 0..8 {
                (top_left[i], top_right[i]) = rows[i];
                (bottom_left[i], bottom_right[i]) = rows[8 + i];
            }
            let (top_left, top_right) = (transpose8(top_left), transpose8(top_right));
            let (bottom_left, bottom_right) = (transpose8(bottom_left), transpose8(bottom_right));
            let mut out = rows;
            for j in 0..8 {
                out[j] = (top_left[j], bottom_left[j]);
                out[8 + j] = (top_right[j], bottom_right[j]);
            }
            out
        }

        fn sum(self, x: F) -> f32 {
            sum(_mm256_add_ps(x.0, x.1))
        }

        fn sums(self, x: [F; 4]) -> [f32; 4] {
            let mut halves = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                halves[i] = _mm256_add_ps(x[i].0, x[i].1);
            }
            sums(halves)
        }
    }
}
