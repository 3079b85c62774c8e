//! Products with the types of 32 elements a block, two blocks at a time.

use std::arch::x86_64::*;

use ds4_formats::quant::{IQ4_LEVELS, MXFP4_DOUBLED};

use super::constants::{bytes, four, table};
use crate::kernels::activation::q8_scales;
use crate::kernels::{Job, RowPair, Scratch};

/// How a type is unpacked. The value holds what stays in registers over all blocks.
pub(super) trait Type32: Copy {
    /// Bytes of a block.
    const BYTES: usize;

    /// # Safety
    /// The machine has this path.
    unsafe fn new() -> Self;

    /// The signed codes of two blocks in the order of
    /// [`Order::Pairs`](crate::kernels::Order::Pairs), and their two scales in the lowest lanes.
    ///
    /// # Safety
    /// As [`Type32::new`]; two whole blocks lie at `blocks`.
    unsafe fn two(&self, blocks: *const u8) -> (__m512i, __m128);
}

/// Bytes read ahead of the weights. The hardware follows a sequential stream too, but not across a
/// page.
const AHEAD: usize = 2048;
/// Weight rows whose products are added up together, one in each lane.
const ROWS: usize = 16;

/// Bytes of scratch for rows of `n_in` elements: for 16 rows the scales of their blocks, and for two
/// activation rows the products of blocks.
pub(super) const fn scratch_bytes(n_in: usize) -> usize {
    3 * ROWS * 4 * n_in.div_ceil(512) * 16
}

/// A product is the sum of the products of blocks, one block after the other. Blocks of a row lie
/// side by side in lanes when their products are made and rows do when they are added up, so
/// products of 16 rows pass through scratch and are transposed there.
///
/// # Safety
/// As [`super::RowDots`], inside an entry point of this path.
#[inline(always)]
pub(super) unsafe fn row_dots<T: Type32>(job: &Job<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        let ty = T::new();
        let (twos, rest) = job.pairs.as_chunks::<2>();
        for pairs in twos {
            rows(&ty, job, *pairs, scratch);
        }
        for pair in rest {
            rows(&ty, job, [*pair], scratch);
        }
    }
}

#[inline(always)]
unsafe fn rows<T: Type32, const R: usize>(
    ty: &T,
    job: &Job<'_>,
    pairs: [RowPair; R],
    scratch: &mut Scratch,
) {
    let n_blocks = job.n_in / 32;
    let stride = n_blocks.next_multiple_of(16);
    let scratch = scratch[..scratch_bytes(job.n_in)]
        .as_mut_ptr()
        .cast::<f32>();
    // SAFETY: the caller's promise; scratch has room for (1 + R) x 16 x `stride` floats.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let n_weights = job.n_weights();
        for o in (0..n_weights).step_by(ROWS) {
            let n = (n_weights - o).min(ROWS);
            for i in 0..n {
                let row = job.weights.as_ptr().add((o + i) * job.row_bytes);
                let scales = scratch.add(i * stride);
                let mut products = [scratch.add((ROWS + i) * stride); R];
                for r in 1..R {
                    products[r] = products[r - 1].add(ROWS * stride);
                }
                block_products(ty, row, job.n_in, acts, scales, products);
            }
            for r in 0..R {
                let mut products = scratch.add((1 + r) * ROWS * stride);
                let mut total = _mm512_setzero_ps();
                for _ in (0..n_blocks).step_by(16) {
                    let mut v = [_mm512_setzero_si512(); 16];
                    for i in 0..16 {
                        v[i] = _mm512_loadu_si512(products.add(i.min(n - 1) * stride).cast());
                    }
                    for block in transposed(v) {
                        total = _mm512_add_ps(total, _mm512_castsi512_ps(block));
                    }
                    products = products.add(16);
                }
                let mask = ((1u32 << n) - 1) as __mmask16;
                _mm512_mask_storeu_ps(job.out(pairs[r], o), mask, total);
            }
        }
    }
}

/// The scaled products of the blocks of a weight row with `R` activation rows.
#[inline(always)]
unsafe fn block_products<T: Type32, const R: usize>(
    ty: &T,
    row: *const u8,
    n_in: usize,
    acts: [*const u8; R],
    scales: *mut f32,
    products: [*mut f32; R],
) {
    // SAFETY: the caller's promise. The last block of an odd number is copied beside zeros; its
    // second half then multiplies zeros.
    unsafe {
        let n_blocks = n_in / 32;
        for first in (0..n_blocks).step_by(16) {
            let mut dots = [[_mm512_setzero_si512(); 8]; R];
            for t in 0..8 {
                let b = first + 2 * t;
                if b >= n_blocks {
                    _mm_storel_pd(scales.add(b).cast(), _mm_setzero_pd());
                    continue;
                }
                let mut padded = [0u8; 80];
                let mut blocks = row.add(b * T::BYTES);
                _mm_prefetch::<_MM_HINT_T0>(blocks.wrapping_add(AHEAD).cast());
                if b + 1 == n_blocks {
                    std::ptr::copy_nonoverlapping(blocks, padded.as_mut_ptr(), T::BYTES);
                    blocks = padded.as_ptr();
                }
                let (codes, two_scales) = ty.two(blocks);
                _mm_storel_pd(scales.add(b).cast(), _mm_castps_pd(two_scales));
                let magnitudes = _mm512_abs_epi8(codes);
                let negative = _mm512_movepi8_mask(codes);
                for r in 0..R {
                    let act = _mm512_loadu_si512(acts[r].add(32 * b).cast());
                    let act = _mm512_mask_sub_epi8(act, negative, _mm512_setzero_si512(), act);
                    dots[r][t] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitudes, act);
                }
            }
            for r in 0..R {
                _mm512_storeu_si512(products[r].add(first).cast(), block_sums(dots[r]));
            }
        }
        // A pass later: the scales were written in small pieces, which a wide load waits for.
        for first in (0..n_blocks).step_by(16) {
            let left = (n_blocks - first).min(16);
            let mask = ((1u32 << left) - 1) as __mmask16;
            let scale = _mm512_loadu_ps(scales.add(first));
            for r in 0..R {
                let act_scales = acts[r].add(q8_scales(n_in) + 4 * first).cast();
                let act_scale = _mm512_maskz_loadu_ps(mask, act_scales);
                let dots = _mm512_loadu_si512(products[r].add(first).cast());
                let scale = _mm512_mul_ps(scale, act_scale);
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale);
                _mm512_storeu_ps(products[r].add(first), product);
            }
        }
    }
}

/// Vector `t` has partial sums of blocks `2 t` and `2 t + 1` by turns; the result has the sum of
/// block `i` in lane `i`.
#[inline(always)]
unsafe fn block_sums(v: [__m512i; 8]) -> __m512i {
    // SAFETY: inside an entry point of this path.
    unsafe {
        // In every 128 bits, four blocks; u[i] has blocks 4 i .. 4 i + 4.
        let u = four!(i => _mm512_add_epi32(
            _mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]),
            _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]),
        ));
        let low = _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0b01_00_01_00>(u[0], u[1]),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(u[0], u[1]),
        );
        let high = _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0b01_00_01_00>(u[2], u[3]),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(u[2], u[3]),
        );
        _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high),
        )
    }
}

/// The transpose of 16 x 16 words of 32 bits.
#[inline(always)]
pub(super) unsafe fn transposed(v: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: inside an entry point of this path.
    unsafe {
        // Within every 128 bits: 4 x 4 words of rows 4 i .. 4 i + 4.
        let mut a = [_mm512_setzero_si512(); 16];
        for i in 0..4 {
            let low01 = _mm512_unpacklo_epi32(v[4 * i], v[4 * i + 1]);
            let low23 = _mm512_unpacklo_epi32(v[4 * i + 2], v[4 * i + 3]);
            let high01 = _mm512_unpackhi_epi32(v[4 * i], v[4 * i + 1]);
            let high23 = _mm512_unpackhi_epi32(v[4 * i + 2], v[4 * i + 3]);
            a[4 * i] = _mm512_unpacklo_epi64(low01, low23);
            a[4 * i + 1] = _mm512_unpackhi_epi64(low01, low23);
            a[4 * i + 2] = _mm512_unpacklo_epi64(high01, high23);
            a[4 * i + 3] = _mm512_unpackhi_epi64(high01, high23);
        }
        // a[4 i + c], 128-bit lane l: column 4 l + c of rows 4 i .. 4 i + 4. Then the lanes.
        let mut out = [_mm512_setzero_si512(); 16];
        for c in 0..4 {
            let low01 = _mm512_shuffle_i32x4::<0b01_00_01_00>(a[c], a[4 + c]);
            let low23 = _mm512_shuffle_i32x4::<0b01_00_01_00>(a[8 + c], a[12 + c]);
            let high01 = _mm512_shuffle_i32x4::<0b11_10_11_10>(a[c], a[4 + c]);
            let high23 = _mm512_shuffle_i32x4::<0b11_10_11_10>(a[8 + c], a[12 + c]);
            out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low01, low23);
            out[4 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low01, low23);
            out[8 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high01, high23);
            out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high01, high23);
        }
        out
    }
}
/// The halves at `p` and `q` as floats in the two lowest lanes.
#[inline(always)]
unsafe fn two_halves(p: *const u8, q: *const u8) -> __m128 {
    // SAFETY: the caller has two bytes at each.
    unsafe {
        let (p, q) = (
            p.cast::<u16>().read_unaligned(),
            q.cast::<u16>().read_unaligned(),
        );
        _mm_cvtph_ps(_mm_cvtsi32_si128(
            (u32::from(p) | (u32::from(q) << 16)) as i32,
        ))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0 {
    /// 32-bit lane `i` of the first and of the second operand by turns.
    pairs: __m512i,
}

impl Type32 for Q8_0 {
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Q8_0 {
                pairs: _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
            }
        }
    }

    #[inline(always)]
    unsafe fn two(&self, blocks: *const u8) -> (__m512i, __m128) {
        // SAFETY: the caller has two blocks: d at 0, codes at 2.
        unsafe {
            let first = _mm256_loadu_si256(blocks.add(2).cast());
            let second = _mm256_loadu_si256(blocks.add(36).cast());
            let codes = _mm512_permutex2var_epi32(
                _mm512_castsi256_si512(first),
                self.pairs,
                _mm512_castsi256_si512(second),
            );
            (codes, two_halves(blocks, blocks.add(34)))
        }
    }
}

/// Codes of two blocks of 16 bytes of nibbles, through a table of 16 values in every 128 bits.
#[inline(always)]
unsafe fn nibbles(first: *const u8, second: *const u8, levels: __m512i) -> __m512i {
    // SAFETY: the caller has 16 bytes at each.
    unsafe {
        let first = _mm_loadu_si128(first.cast());
        let second = _mm_loadu_si128(second.cast());
        // Elements 0 to 15 of both in the low nibbles, 16 to 31 in the high ones, by turns of 4.
        let low = _mm256_inserti128_si256::<1>(
            _mm256_castsi128_si256(_mm_unpacklo_epi32(first, second)),
            _mm_unpackhi_epi32(first, second),
        );
        let both =
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), _mm256_srli_epi16::<4>(low));
        _mm512_shuffle_epi8(levels, _mm512_and_si512(both, _mm512_set1_epi8(15)))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Iq4Nl {
    levels: __m512i,
}

impl Type32 for Iq4Nl {
    const BYTES: usize = 18;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Iq4Nl {
                levels: bytes(&table!(b => IQ4_LEVELS[b % 16])),
            }
        }
    }

    #[inline(always)]
    unsafe fn two(&self, blocks: *const u8) -> (__m512i, __m128) {
        // SAFETY: the caller has two blocks: d at 0, codes at 2.
        unsafe {
            let codes = nibbles(blocks.add(2), blocks.add(20), self.levels);
            (codes, two_halves(blocks, blocks.add(18)))
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Mxfp4 {
    levels: __m512i,
}

impl Type32 for Mxfp4 {
    const BYTES: usize = 17;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Mxfp4 {
                levels: bytes(&table!(b => MXFP4_DOUBLED[b % 16])),
            }
        }
    }

    #[inline(always)]
    unsafe fn two(&self, blocks: *const u8) -> (__m512i, __m128) {
        // SAFETY: the caller has two blocks: the exponent at 0, codes at 1.
        unsafe {
            let codes = nibbles(blocks.add(1), blocks.add(18), self.levels);
            // 2^(e - 128): the bits of e - 1 in the exponent field, or a subnormal for 0 and 1.
            // Ordinary numbers in the lanes without meaning: subnormal ones are slow.
            let e = _mm_setr_epi32(i32::from(*blocks), i32::from(*blocks.add(17)), 127, 127);
            let normal = _mm_slli_epi32::<23>(_mm_sub_epi32(e, _mm_set1_epi32(1)));
            let small = _mm_sllv_epi32(_mm_set1_epi32(0x0020_0000), e);
            let is_small = _mm_cmplt_epi32(e, _mm_set1_epi32(2));
            (
                codes,
                _mm_castsi128_ps(_mm_blendv_epi8(normal, small, is_small)),
            )
        }
    }
}
