//! Products from codes in natural order, over an inner loop that each path supplies.

use super::unpack::{Unpack32, Unpack256, Unpacked};
use crate::kernels::activation::{q8_scales, q8k_scales, q8k_sums};
use crate::kernels::{Job, RowPair, Scratch};

/// A block of 32, unpacked.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Unpacked32 {
    pub(crate) codes: [i8; 32],
    pub(crate) scale: f32,
}

/// The arithmetic of a path. Methods are called inside an entry point of that path.
pub(crate) trait Inner: Copy {
    /// Partial sums of one product.
    type Sum: Copy;

    /// No sum yet.
    ///
    /// # Safety
    /// The machine has the path.
    unsafe fn zero() -> Self::Sum;

    /// Adds `scale` times the product of a block of 256 with activation codes and their negated
    /// sums of 16. The codes of a block with mins are not negative.
    ///
    /// # Safety
    /// As [`Inner::zero`]; there are 256 codes and 16 sums.
    unsafe fn add_256<const HAS_MIN: bool>(
        sum: Self::Sum,
        block: &Unpacked,
        codes: *const i8,
        sums: *const i32,
        scale: f32,
    ) -> Self::Sum;

    /// Adds `scale` times the product of 32 weight codes with activation codes.
    ///
    /// # Safety
    /// As [`Inner::zero`]; there are 32 codes.
    unsafe fn add_32(sum: Self::Sum, block: &[i8; 32], codes: *const i8, scale: f32) -> Self::Sum;

    /// The sum of the partial sums.
    ///
    /// # Safety
    /// As [`Inner::zero`].
    unsafe fn total(sum: Self::Sum) -> f32;
}

/// # Safety
/// As [`crate::kernels::RowDots`], inside an entry point of the path of `I`.
#[inline(always)]
pub(crate) unsafe fn row_dots_256<U: Unpack256, I: Inner>(job: &Job<'_>, scratch: &mut Scratch) {
    // SAFETY: every bit pattern is an unpacked block, and scratch has room for a row of them.
    let unpacked = unsafe { &mut scratch.align_to_mut::<Unpacked>().1[..job.n_in / 256] };
    for (o, row) in job.weights.chunks_exact(job.row_bytes).enumerate() {
        for (block, out) in row.chunks_exact(U::BYTES).zip(unpacked.iter_mut()) {
            // SAFETY: a block of alignment 1 lies in these bytes.
            U::unpack(unsafe { &*block.as_ptr().cast::<U::Block>() }, out);
        }
        let (fours, rest) = job.pairs.as_chunks::<4>();
        // SAFETY: the caller's promise.
        unsafe {
            for group in fours {
                products_256::<U, I, 4>(job, unpacked, *group, o);
            }
            for pair in rest {
                products_256::<U, I, 1>(job, unpacked, [*pair], o);
            }
        }
    }
}

/// # Safety
/// As [`row_dots_256`].
#[inline(always)]
unsafe fn products_256<U: Unpack256, I: Inner, const R: usize>(
    job: &Job<'_>,
    row: &[Unpacked],
    pairs: [RowPair; R],
    o: usize,
) {
    // SAFETY: the caller's promise: the activation rows have as many blocks.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let mut sums = [I::zero(); R];
        for (b, block) in row.iter().enumerate() {
            for r in 0..R {
                let codes = acts[r].add(256 * b).cast();
                let negated = acts[r].add(q8k_sums(job.n_in) + 64 * b).cast();
                let scale = *acts[r].add(q8k_scales(job.n_in) + 4 * b).cast::<f32>();
                sums[r] = if U::HAS_MIN {
                    I::add_256::<true>(sums[r], block, codes, negated, scale)
                } else {
                    I::add_256::<false>(sums[r], block, codes, negated, scale)
                };
            }
        }
        for r in 0..R {
            *job.out(pairs[r], o) = I::total(sums[r]);
        }
    }
}

/// # Safety
/// As [`crate::kernels::RowDots`], inside an entry point of the path of `I`.
#[inline(always)]
pub(crate) unsafe fn row_dots_32<U: Unpack32, I: Inner>(job: &Job<'_>, scratch: &mut Scratch) {
    // SAFETY: every bit pattern is an unpacked block, and scratch has room for a row of them.
    let unpacked = unsafe { &mut scratch.align_to_mut::<Unpacked32>().1[..job.n_in / 32] };
    for (o, row) in job.weights.chunks_exact(job.row_bytes).enumerate() {
        for (block, out) in row.chunks_exact(U::BYTES).zip(unpacked.iter_mut()) {
            // SAFETY: a block of alignment 1 lies in these bytes.
            let block = unsafe { &*block.as_ptr().cast::<U::Block>() };
            out.scale = U::unpack(block, &mut out.codes);
        }
        let (fours, rest) = job.pairs.as_chunks::<4>();
        // SAFETY: the caller's promise.
        unsafe {
            for group in fours {
                products_32::<I, 4>(job, unpacked, *group, o);
            }
            for pair in rest {
                products_32::<I, 1>(job, unpacked, [*pair], o);
            }
        }
    }
}

/// # Safety
/// As [`row_dots_32`].
#[inline(always)]
unsafe fn products_32<I: Inner, const R: usize>(
    job: &Job<'_>,
    row: &[Unpacked32],
    pairs: [RowPair; R],
    o: usize,
) {
    // SAFETY: the caller's promise: the activation rows have as many blocks.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let mut sums = [I::zero(); R];
        for (b, block) in row.iter().enumerate() {
            for r in 0..R {
                let scale = *acts[r].add(q8_scales(job.n_in) + 4 * b).cast::<f32>();
                let codes = acts[r].add(32 * b).cast();
                sums[r] = I::add_32(sums[r], &block.codes, codes, block.scale * scale);
            }
        }
        for r in 0..R {
            *job.out(pairs[r], o) = I::total(sums[r]);
        }
    }
}
