//! MXFP4 with the instructions of AVX2.
//!
//! A block of 32 numbers stays in four registers: both scales that the search of
//! [`ds4_formats::quant::encode_row`] tries are tried side by side, in the same order of additions,
//! so the bytes are the same. What is not finite, all zero, or near the ends of f32 is left to it.

use std::arch::x86_64::*;

use ds4_formats::GgmlType;
use ds4_formats::quant::encode_row_inlined;

/// Numbers and bytes of a block.
const LEN: usize = 32;
const BYTES: usize = 17;

/// Encodes whole blocks; as long as the caller says, which has been checked.
#[target_feature(enable = "avx2")]
pub(super) fn encode(x: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let blocks = x.as_chunks::<LEN>().0.iter();
    for (i, (x, out)) in blocks.zip(out.as_chunks_mut::<BYTES>().0).enumerate() {
        let w = weights.and_then(|w| w.as_chunks::<LEN>().0.get(i));
        match block(x, w) {
            Some(block) => *out = block,
            None => encode_row_inlined(GgmlType::MXFP4, x, w.map(|w| &w[..]), out),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; LEN]) -> [__m256; 4] {
    let x = x.as_ptr();
    // SAFETY: four times eight of the 32 numbers.
    unsafe {
        [
            _mm256_loadu_ps(x),
            _mm256_loadu_ps(x.add(8)),
            _mm256_loadu_ps(x.add(16)),
            _mm256_loadu_ps(x.add(24)),
        ]
    }
}

/// The sum of the lanes, in the order of the search's sums.
#[inline]
#[target_feature(enable = "avx2")]
fn total(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The doubled E2M1 magnitudes nearest to magnitudes: integers up to 4, even ones up to 8, 12.
#[inline]
#[target_feature(enable = "avx2")]
fn nearest_levels(magnitude: __m256) -> __m256 {
    let cut = _mm256_min_ps(magnitude, _mm256_set1_ps(12.0));
    // The exponent of each, but no less than that of 2: levels lie half of that power apart. What
    // 1.5 * 2^23 of these distances are added to is rounded to a multiple of them.
    let least = _mm256_castps_si256(_mm256_set1_ps(2.0));
    let size = _mm256_max_epi32(_mm256_castps_si256(cut), least);
    let exponent = _mm256_and_si256(size, _mm256_set1_epi32(0x7f80_0000));
    let shift = _mm256_add_epi32(exponent, _mm256_set1_epi32((22 << 23) | 0x40_0000));
    let shift = _mm256_castsi256_ps(shift);
    _mm256_sub_ps(_mm256_add_ps(cut, shift), shift)
}

/// `2^n`, for `n` from -126 to 127.
#[inline]
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Importances as the search takes them: 32 in all, or 1 each where they say nothing.
#[inline]
#[target_feature(enable = "avx2")]
fn weights(w: Option<&[f32; LEN]>) -> [__m256; 4] {
    let even = [_mm256_set1_ps(1.0); 4];
    let Some(w) = w else {
        return even;
    };
    let w = load(w);
    let sum = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(w[0], w[1]), w[2]), w[3]);
    let sum = total(sum);
    if !(sum.is_finite() && sum > 0.0) {
        return even;
    }
    let by = _mm256_set1_ps(LEN as f32 / sum);
    w.map(|w| _mm256_mul_ps(w, by))
}

/// The levels at the scale `2^n`, and the weighted squared error.
#[inline]
#[target_feature(enable = "avx2")]
fn at_scale(magnitude: &[__m256; 4], w: &[__m256; 4], n: i32) -> ([__m256; 4], f32) {
    let (scale, inverse) = (_mm256_set1_ps(power(n)), _mm256_set1_ps(power(-n)));
    let levels = magnitude.map(|m| nearest_levels(_mm256_mul_ps(m, inverse)));
    let mut error = _mm256_setzero_ps();
    for i in 0..4 {
        let r = _mm256_sub_ps(magnitude[i], _mm256_mul_ps(scale, levels[i]));
        error = _mm256_add_ps(error, _mm256_mul_ps(_mm256_mul_ps(w[i], r), r));
    }
    (levels, total(error))
}

/// 32 integers as bytes, cut to what a byte holds.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(v: [__m256i; 4]) -> __m256i {
    let words = (
        _mm256_packs_epi32(v[0], v[1]),
        _mm256_packs_epi32(v[2], v[3]),
    );
    // Packing works in halves of a register.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words.0, words.1), order)
}

/// A block; `None` is one for the search in plain code.
#[inline]
#[target_feature(enable = "avx2")]
fn block(x: &[f32; LEN], w: Option<&[f32; LEN]>) -> Option<[u8; BYTES]> {
    let x = load(x);
    let magnitude = x.map(|x| _mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
    // Magnitudes are in the order of their bits, and what is no number comes after all.
    let m = magnitude.map(|m| _mm256_castps_si256(m));
    let most = _mm256_max_epi32(_mm256_max_epi32(m[0], m[1]), _mm256_max_epi32(m[2], m[3]));
    let most = _mm_max_epi32(
        _mm256_castsi256_si128(most),
        _mm256_extracti128_si256::<1>(most),
    );
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
    let largest = _mm_cvtsi128_si32(most) as u32;
    // The least scale at which nothing is cut off is the least power of two of which 12 are as
    // much as the largest; 12 is 1.5 * 2^3, and 1.5 the fraction 0x40_0000.
    let n = ((largest + 0x3f_ffff) >> 23) as i32 - 127 - 3;
    if largest >= f32::INFINITY.to_bits() || !(-120..=120).contains(&n) {
        return None;
    }
    let w = weights(w);
    let (wide, narrow) = (at_scale(&magnitude, &w, n), at_scale(&magnitude, &w, n - 1));
    let least = f32::INFINITY;
    let ((levels, _), n) = if narrow.1 < least.min(wide.1) {
        (narrow, n - 1)
    } else if wide.1 < least {
        (wide, n)
    } else {
        return None;
    };
    // The code of each level, and 8 for what is negative and not 0.
    let levels = bytes(levels.map(|y| _mm256_cvtps_epi32(y)));
    let codes = _mm_setr_epi8(0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7, 0, 0, 0);
    let codes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes), levels);
    let signs = bytes(x.map(|x| _mm256_castps_si256(x)));
    let is_negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), signs);
    let is_something = _mm256_cmpgt_epi8(codes, _mm256_setzero_si256());
    let signs = _mm256_and_si256(is_negative, is_something);
    let codes = _mm256_or_si256(codes, _mm256_and_si256(signs, _mm256_set1_epi8(8)));
    let (low, high) = (
        _mm256_castsi256_si128(codes),
        _mm256_extracti128_si256::<1>(codes),
    );
    // Codes have four bits, so none of them reaches the byte above.
    let halves = _mm_or_si128(low, _mm_slli_epi16::<4>(high));
    let mut out = [0; BYTES];
    out[0] = (n + 128) as u8;
    // SAFETY: the 16 bytes after the first.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().add(1).cast(), halves) };
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same in every run.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn uniform(&mut self) -> f32 {
            (self.next() >> 40) as f32 / (1u64 << 24) as f32
        }
    }

    #[track_caller]
    fn same(x: &[f32], w: Option<&[f32]>) {
        let n_bytes = x.len() / LEN * BYTES;
        let (mut plain, mut fast) = (vec![0; n_bytes], vec![1; n_bytes]);
        ds4_formats::quant::encode_row(GgmlType::MXFP4, x, w, &mut plain);
        // SAFETY: the caller asked whether the machine has the instructions.
        unsafe { encode(x, w, &mut fast) };
        assert_eq!(plain, fast, "{x:?} {w:?}");
    }

    #[test]
    fn every_block_has_the_bytes_of_the_plain_search() {
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        let mut dice = Dice(1);
        // All sizes, down to what is subnormal and up to what is just finite.
        for exponent in -149..=127 {
            let unit = 2.0f64.powi(exponent);
            let mut number = |spread: f64| {
                let fraction = f64::from(dice.uniform()) * 2.0 - 1.0;
                (fraction * unit * spread.powf(f64::from(dice.uniform()))) as f32
            };
            let x: Vec<f32> = (0..4 * LEN).map(|_| number(2.0)).collect();
            let tailed: Vec<f32> = (0..4 * LEN).map(|_| number(1e-4)).collect();
            let w: Vec<f32> = (0..4 * LEN).map(|_| number(1e-3).abs()).collect();
            for x in [&x, &tailed] {
                same(x, None);
                same(x, Some(&w));
            }
        }
    }

    #[test]
    fn so_do_ties_signs_and_what_is_at_the_ends() {
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        // Every quarter up to beyond the largest level, at the largest number of either scale.
        for largest in [4.0f32, 5.0, 5.999_999, 6.0, 6.000_000_5, 7.0, 8.0, 12.0] {
            for first in 0..32u8 {
                let mut x: Vec<f32> = (0..LEN as u8)
                    .map(|i| f32::from(first + i) / 4.0 * if i % 3 == 0 { -1.0 } else { 1.0 })
                    .map(|x| x.clamp(-largest, largest))
                    .collect();
                x[7] = -largest;
                x[8] = -0.0;
                same(&x, None);
                let w: Vec<f32> = (0..LEN as u8).map(|i| f32::from(i % 5)).collect();
                same(&x, Some(&w));
            }
        }
        let mut dice = Dice(2);
        for odd in [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-45,
        ] {
            same(&[odd; LEN], None);
            let x: Vec<f32> = (0..LEN).map(|_| dice.uniform() - 0.5).collect();
            let mut changed = x.clone();
            changed[dice.next() as usize % LEN] = odd;
            same(&changed, None);
            // As an importance it may say nothing.
            same(&x, Some(&[odd; LEN]));
            same(&x, Some(&changed));
        }
    }
}
