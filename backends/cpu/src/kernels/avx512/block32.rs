//! Products with the types of 32 elements a block, two blocks at a time.

use std::arch::x86_64::*;

use ds4_formats::quant::{IQ4_LEVELS, MXFP4_DOUBLED};

use super::block256::store_sums;
use super::constants::{bytes, table};
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

/// # Safety
/// As [`super::RowDots`], inside an entry point of this path.
#[inline(always)]
pub(super) unsafe fn row_dots<T: Type32>(job: &Job<'_>, _: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        let ty = T::new();
        let mut groups = job.pairs.chunks_exact(4);
        for group in &mut groups {
            rows(&ty, job, [group[0], group[1], group[2], group[3]]);
        }
        match *groups.remainder() {
            [] => {}
            [a] => rows(&ty, job, [a]),
            [a, b] => rows(&ty, job, [a, b]),
            [a, b, c] => rows(&ty, job, [a, b, c]),
            _ => unreachable!(),
        }
    }
}

#[inline(always)]
unsafe fn rows<T: Type32, const R: usize>(ty: &T, job: &Job<'_>, pairs: [RowPair; R]) {
    // SAFETY: the caller's promise: weight rows are whole, activation rows have the form. The last
    // block of an odd number is copied beside zeros; its second half then multiplies zeros.
    unsafe {
        let n_blocks = job.n_in / 32;
        let acts = pairs.map(|pair| job.act(pair));
        let n_weights = job.n_weights();
        let mut o = 0;
        while o < n_weights {
            let n = (n_weights - o).min(4);
            let mut sums = [[_mm512_setzero_ps(); 4]; R];
            for i in 0..n {
                let row = job.weights.as_ptr().add((o + i) * job.row_bytes);
                let mut totals = [_mm512_setzero_ps(); R];
                for b in (0..n_blocks / 2 * 2).step_by(2) {
                    let blocks = row.add(b * T::BYTES);
                    _mm_prefetch::<_MM_HINT_T0>(blocks.wrapping_add(AHEAD).cast());
                    two_blocks(ty, blocks, job.n_in, b, acts, &mut totals);
                }
                if n_blocks % 2 == 1 {
                    let mut padded = [0u8; 80];
                    let last = row.add((n_blocks - 1) * T::BYTES);
                    std::ptr::copy_nonoverlapping(last, padded.as_mut_ptr(), T::BYTES);
                    two_blocks(
                        ty,
                        padded.as_ptr(),
                        job.n_in,
                        n_blocks - 1,
                        acts,
                        &mut totals,
                    );
                }
                for r in 0..R {
                    sums[r][i] = totals[r];
                }
            }
            for r in 0..R {
                store_sums(sums[r], job.out(pairs[r], o), n);
            }
            o += n;
        }
    }
}

/// Adds the products of blocks `b` and `b + 1` to the partial sums.
#[inline(always)]
unsafe fn two_blocks<T: Type32, const R: usize>(
    ty: &T,
    blocks: *const u8,
    n_in: usize,
    b: usize,
    acts: [*const u8; R],
    totals: &mut [__m512; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (codes, scales) = ty.two(blocks);
        let magnitudes = _mm512_abs_epi8(codes);
        let negative = _mm512_movepi8_mask(codes);
        let scales = _mm512_broadcastsd_pd(_mm_castps_pd(scales));
        for r in 0..R {
            let act = _mm512_loadu_si512(acts[r].add(32 * b).cast());
            let act = _mm512_mask_sub_epi8(act, negative, _mm512_setzero_si512(), act);
            let dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitudes, act);
            let act_scales = acts[r].add(q8_scales(n_in) + 4 * b).cast::<f64>();
            let act_scales = _mm512_set1_pd(act_scales.read_unaligned());
            let scale = _mm512_mul_ps(_mm512_castpd_ps(scales), _mm512_castpd_ps(act_scales));
            totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, totals[r]);
        }
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
