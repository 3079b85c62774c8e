//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::portable::*;

/// Eight partial sums.
#[derive(Clone, Copy)]
struct Lanes8;

/// Sums of 4 products of signed codes in each of 8 lanes. `vpmaddubsw` multiplies unsigned by
/// signed bytes, so the weights' signs move to the activations; pairs stay below 2 * 128 * 127.
#[inline(always)]
unsafe fn signed_product(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: inside an entry point of this path.
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    }
}

/// As [`signed_product`] for codes from 0 to 127.
#[inline(always)]
unsafe fn unsigned_product(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: inside an entry point of this path.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)) }
}

impl Inner for Lanes8 {
    type Sum = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: inside an entry point of this path.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn add_256<const HAS_MIN: bool>(
        sum: __m256,
        block: &Unpacked,
        codes: *const i8,
        sums: *const i32,
        scale: f32,
    ) -> __m256 {
        // SAFETY: the caller has 256 codes and 16 sums; inside an entry point of this path.
        unsafe {
            let mut block_sum = _mm256_setzero_ps();
            for i in 0..8 {
                let w = _mm256_load_si256(block.codes.as_ptr().add(32 * i).cast());
                let a = _mm256_loadu_si256(codes.add(32 * i).cast());
                let product = if HAS_MIN {
                    unsigned_product(w, a)
                } else {
                    signed_product(w, a)
                };
                // The first four lanes belong to one sub-block, the last four to the next.
                let scales = _mm256_insertf128_ps::<1>(
                    _mm256_castps128_ps256(_mm_set1_ps(block.scale[2 * i])),
                    _mm_set1_ps(block.scale[2 * i + 1]),
                );
                block_sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scales, block_sum);
            }
            if HAS_MIN {
                for i in 0..2 {
                    let sums = _mm256_cvtepi32_ps(_mm256_loadu_si256(sums.add(8 * i).cast()));
                    let mins = _mm256_load_ps(block.min.as_ptr().add(8 * i));
                    block_sum = _mm256_fmadd_ps(sums, mins, block_sum);
                }
            }
            _mm256_fmadd_ps(block_sum, _mm256_set1_ps(scale), sum)
        }
    }

    #[inline(always)]
    unsafe fn add_32(sum: __m256, block: &[i8; 32], codes: *const i8, scale: f32) -> __m256 {
        // SAFETY: the caller has 32 codes; inside an entry point of this path.
        unsafe {
            let w = _mm256_loadu_si256(block.as_ptr().cast());
            let product = signed_product(w, _mm256_loadu_si256(codes.cast()));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_set1_ps(scale), sum)
        }
    }

    #[inline(always)]
    unsafe fn total(sum: __m256) -> f32 {
        // SAFETY: inside an entry point of this path.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
}

natural_kernels! {
    inner = Lanes8;
    #[target_feature(enable = "avx2,fma,f16c")]
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
