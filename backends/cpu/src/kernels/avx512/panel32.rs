//! Many activation rows times the types of 32 elements a block.
//!
//! With one scale for every 32 products, a lane that sums 4 products would need a scale for every
//! one of them. Here a lane belongs to one weight row instead and sums all 32: weights of 32 rows
//! are unpacked once into a *panel*, groups of 4 codes of 16 rows side by side, and every 4 codes of
//! an activation row are broadcast against it.
//!
//! ```text
//! panel: for each block of 32: codes + 128, u8 [8 groups, 2, 16 rows, 4] | scales f32 [2, 16 rows]
//! ```

use std::arch::x86_64::*;

use super::block32::{Type32, transposed};
use crate::kernels::activation::{q8_scales, q8_sums};
use crate::kernels::{Job, RowPair, Scratch};

/// Weight rows of a panel.
const COLUMNS: usize = 32;
/// Bytes of a panel for a block of 32: 1024 of codes and 128 of scales.
const BLOCK_BYTES: usize = 1152;
/// Bytes read ahead of the weights.
const AHEAD: usize = 2048;
/// Activation rows multiplied at a time: 2 x 6 sums of integers, 2 x 6 of floats.
const ROWS: usize = 6;

/// Bytes of scratch for rows of `n_in` elements: a panel, then its rows unpacked.
pub(super) const fn scratch_bytes(n_in: usize) -> usize {
    panel_bytes(n_in) + COLUMNS * row_stride(n_in)
}

const fn panel_bytes(n_in: usize) -> usize {
    n_in.div_ceil(64) * 2 * BLOCK_BYTES
}

/// Bytes from one unpacked row to the next, which are not whole pages: those would all want the
/// same places of the first-level cache.
const fn row_stride(n_in: usize) -> usize {
    n_in.next_multiple_of(64) + 64
}

/// # Safety
/// As [`super::RowDots`], inside an entry point of this path.
#[inline(always)]
pub(super) unsafe fn row_dots<T: Type32>(job: &Job<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise; scratch has room for a panel.
    unsafe {
        let ty = T::new();
        let panel = scratch[..scratch_bytes(job.n_in)].as_mut_ptr();
        let n_weights = job.n_weights();
        for o in (0..n_weights).step_by(COLUMNS) {
            let n = (n_weights - o).min(COLUMNS);
            let first = job.weights.as_ptr().add(o * job.row_bytes);
            fill(&ty, first, job.row_bytes, n, job.n_in, panel);
            let (groups, rest) = job.pairs.as_chunks::<ROWS>();
            for group in groups {
                tile(job, panel, *group, o, n);
            }
            match *rest {
                [] => {}
                [a] => tile(job, panel, [a], o, n),
                [a, b] => tile(job, panel, [a, b], o, n),
                [a, b, c] => tile(job, panel, [a, b, c], o, n),
                [a, b, c, d] => tile(job, panel, [a, b, c, d], o, n),
                [a, b, c, d, e] => tile(job, panel, [a, b, c, d, e], o, n),
                _ => unreachable!(),
            }
        }
    }
}

/// Unpacks `n` rows, one after another as they lie in memory, and transposes what comes of them.
/// Columns beyond them repeat the last row; their products are not stored.
#[inline(always)]
unsafe fn fill<T: Type32>(
    ty: &T,
    first: *const u8,
    row_bytes: usize,
    n: usize,
    n_in: usize,
    panel: *mut u8,
) {
    // SAFETY: the caller's promise; scratch has room for the panel and the unpacked rows. The last
    // block of an odd number is copied beside zeros; what comes of the second half is not used.
    unsafe {
        let n_blocks = n_in / 32;
        let rows = panel.add(panel_bytes(n_in));
        let stride = row_stride(n_in);
        for j in 0..n {
            let row = first.add(j * row_bytes);
            for b in (0..n_blocks).step_by(2) {
                let mut padded = [0u8; 80];
                let mut blocks = row.add(b * T::BYTES);
                _mm_prefetch::<_MM_HINT_T0>(blocks.wrapping_add(AHEAD).cast());
                if b + 1 == n_blocks {
                    std::ptr::copy_nonoverlapping(blocks, padded.as_mut_ptr(), T::BYTES);
                    blocks = padded.as_ptr();
                }
                let (codes, scales) = ty.two(blocks);
                let codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
                _mm512_storeu_si512(rows.add(j * stride + 32 * b).cast(), codes);
                let scale = panel.add(b * BLOCK_BYTES + 1024 + 4 * j);
                _mm_store_ss(scale.cast(), scales);
                _mm_store_ss(scale.add(BLOCK_BYTES).cast(), _mm_movehdup_ps(scales));
            }
        }
        for b in (0..n_blocks).step_by(2) {
            for half in 0..2 {
                let mut codes = [_mm512_setzero_si512(); 16];
                for i in 0..16 {
                    let j = (16 * half + i).min(n - 1);
                    codes[i] = _mm512_loadu_si512(rows.add(j * stride + 32 * b).cast());
                }
                let columns = transposed(codes);
                for i in 0..8 {
                    for block in 0..2 {
                        let to = panel.add((b + block) * BLOCK_BYTES + 128 * i + 64 * half);
                        _mm512_storeu_si512(to.cast(), columns[2 * i + block]);
                    }
                }
            }
        }
    }
}

/// `R` activation rows times a panel of which `n` columns count.
#[inline(always)]
unsafe fn tile<const R: usize>(
    job: &Job<'_>,
    panel: *const u8,
    pairs: [RowPair; R],
    o: usize,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let mut totals = [[_mm512_setzero_ps(); 2]; R];
        for b in 0..job.n_in / 32 {
            let block = panel.add(b * BLOCK_BYTES);
            let mut sums = [[_mm512_setzero_si512(); 2]; R];
            for r in 0..R {
                // Takes the 128 of every code back.
                let start = acts[r].add(q8_sums(job.n_in) + 4 * b).cast::<i32>();
                sums[r] = [_mm512_set1_epi32(*start); 2];
            }
            for i in 0..8 {
                let w0 = _mm512_loadu_si512(block.add(128 * i).cast());
                let w1 = _mm512_loadu_si512(block.add(128 * i + 64).cast());
                for r in 0..R {
                    let at = 64 * (b / 2) + 8 * i + 4 * (b % 2);
                    let act = _mm512_set1_epi32(*acts[r].add(at).cast::<i32>());
                    sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], w0, act);
                    sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], w1, act);
                }
            }
            let scales = [
                _mm512_loadu_ps(block.add(1024).cast()),
                _mm512_loadu_ps(block.add(1088).cast()),
            ];
            for r in 0..R {
                let scale = *acts[r].add(q8_scales(job.n_in) + 4 * b).cast::<f32>();
                let scale = _mm512_set1_ps(scale);
                for c in 0..2 {
                    // Rounded as in `block32`: a product is the same in both.
                    let scale = _mm512_mul_ps(scales[c], scale);
                    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][c]), scale);
                    totals[r][c] = _mm512_add_ps(totals[r][c], product);
                }
            }
        }
        for r in 0..R {
            let out = job.out(pairs[r], o);
            for c in 0..2 {
                let left = n.saturating_sub(16 * c).min(16);
                let mask = ((1u32 << left) - 1) as __mmask16;
                _mm512_mask_storeu_ps(out.wrapping_add(16 * c), mask, totals[r][c]);
            }
        }
    }
}
