//! One 512-bit register.

use std::arch::x86_64::*;

use super::{LANES, Lanes, Simd, intrinsics};

/// AVX-512 F, BW, DQ, VL and VNNI, with what they imply.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    ///
    /// The machine has these instructions.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx512 {
        Avx512(())
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    const TILE_ROWS: usize = 8;
    const TILE_VECTORS: usize = 2;
    const HAS_BYTES: bool = true;
    const BYTE_BIAS: u8 = 128;

    intrinsics! {
        fn splat(self, x: f32) -> __m512 {
            _mm512_set1_ps(x)
        }

        fn load(self, x: &Lanes) -> __m512 {
            _mm512_loadu_ps(x.as_ptr())
        }

        fn store(self, x: __m512, out: &mut Lanes) -> () {
            _mm512_storeu_ps(out.as_mut_ptr(), x)
        }

        fn load_f16(self, x: &Lanes<u16>) -> __m512 {
            _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()))
        }

        fn load_bf16(self, x: &Lanes<u16>) -> __m512 {
            let halves = _mm256_loadu_si256(x.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }

        fn store_bf16(self, x: __m512, out: &mut Lanes<u16>) -> () {
            // Half a step less one, plus the last kept bit, carries exactly when rounding up is due.
            let bits = _mm512_castps_si512(x);
            let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let carry = _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, carry));
            // A carry would turn some NaN into a zero; a quiet one stands for them all.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded))
        }

        fn load_pairs(self, x: &[u16; 2 * LANES]) -> __m512 {
            _mm512_castsi512_ps(_mm512_loadu_si512(x.as_ptr().cast()))
        }

        fn split_bf16(self, pairs: __m512) -> (__m512, __m512) {
            let bits = _mm512_castps_si512(pairs);
            (
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)),
                _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000u32 as i32))),
            )
        }

        fn add(self, a: __m512, b: __m512) -> __m512 {
            _mm512_add_ps(a, b)
        }

        fn sub(self, a: __m512, b: __m512) -> __m512 {
            _mm512_sub_ps(a, b)
        }

        fn mul(self, a: __m512, b: __m512) -> __m512 {
            _mm512_mul_ps(a, b)
        }

        fn div(self, a: __m512, b: __m512) -> __m512 {
            _mm512_div_ps(a, b)
        }

        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            _mm512_fmadd_ps(a, b, c)
        }

        fn max(self, a: __m512, b: __m512) -> __m512 {
            _mm512_max_ps(a, b)
        }

        fn min(self, a: __m512, b: __m512) -> __m512 {
            _mm512_min_ps(a, b)
        }

        fn sqrt(self, x: __m512) -> __m512 {
            _mm512_sqrt_ps(x)
        }

        fn abs(self, x: __m512) -> __m512 {
            _mm512_abs_ps(x)
        }

        fn exponent(self, x: __m512) -> __m512 {
            _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f80_0000)))
        }

        fn round(self, x: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }

        fn exp2(self, n: __m512) -> __m512 {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }

        fn splat_int(self, x: i32) -> __m512i {
            _mm512_set1_epi32(x)
        }

        fn dot_bytes(self, sum: __m512i, x: &Lanes<[u8; 4]>, y: [u8; 4]) -> __m512i {
            let x = _mm512_loadu_si512(x.as_ptr().cast());
            _mm512_dpbusd_epi32(sum, x, _mm512_set1_epi32(i32::from_le_bytes(y)))
        }

        fn float(self, x: __m512i) -> __m512 {
            _mm512_cvtepi32_ps(x)
        }

        fn store_bytes(self, x: __m512, out: &mut Lanes<u8>) -> bool {
            let whole = _mm512_cvtps_epi32(x);
            let bytes = _mm512_cvtsepi32_epi8(whole);
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            // What saturated does not come back.
            let back = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(back, x) == 0
        }

        fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
            // Pairs of rows, then fours, then blocks of 128 bits twice.
            let mut a = rows;
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // b[4 * i + j]: column j of every 128-bit block, of rows 4i to 4i + 3.
            let mut b = a;
            for i in 0..4 {
                for half in 0..2 {
                    let low = _mm512_castps_pd(a[4 * i + half]);
                    let high = _mm512_castps_pd(a[4 * i + 2 + half]);
                    b[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                    b[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
                }
            }
            let mut out = b;
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[j], b[4 + j]);
                let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[j], b[4 + j]);
                let even_high = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[8 + j], b[12 + j]);
                let odd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[8 + j], b[12 + j]);
                out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_high);
                out[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_high);
                out[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_high);
                out[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_high);
            }
            out
        }

        fn sum(self, x: __m512) -> f32 {
            let high = _mm512_extractf32x8_ps::<1>(x);
            super::avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(x), high))
        }

        fn sums(self, x: [__m512; 4]) -> [f32; 4] {
            let mut halves = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let high = _mm512_extractf32x8_ps::<1>(x[i]);
                halves[i] = _mm256_add_ps(_mm512_castps512_ps256(x[i]), high);
            }
            super::avx2::sums(halves)
        }

        fn largest(self, x: __m512) -> f32 {
            _mm512_reduce_max_ps(x)
        }
    }
}
