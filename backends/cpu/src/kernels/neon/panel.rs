//! Many activation rows, by matrix products of 2 x 8 with 8 x 2 codes.
//!
//! Four weight rows are unpacked once, as two pairs whose codes lie side by side in eights, and
//! multiplied with every four activation rows. A vector of sums has the lanes w0 a0, w0 a1, w1 a0,
//! w1 a1. Sums are added in the order of [`super::block256`] and [`super::block32`], so the products
//! are theirs to the bit.

use std::arch::aarch64::*;

use super::block32::{Mxfp4, Q8_0, Type32};
use super::block256::{Codes, Iq2Xxs, Q2K, Q4K, Q6K, Type256, min_sum};
use super::{ROWS, matrix, sums_of_lanes};
use crate::kernels::activation::{q8_scales, q8k_scales, q8k_sums};
use crate::kernels::{Job, RowPair, Scratch};
use crate::path::Cpu;

/// Activation rows that are multiplied together.
const ACTS: usize = 4;

/// A block of 256 of two weight rows.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Pair256 {
    /// Eight codes of one row, then the same eight of the other.
    codes: [[i8; 16]; 32],
    /// Of 16 codes: the scale of one row twice, then that of the other.
    scales: [[i32; 4]; 16],
    mins: [[i32; 16]; 2],
    /// As the scales.
    d: [f32; 4],
    dmin: [f32; 4],
}

/// A block of 32 of two weight rows.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
struct Pair32 {
    /// As in [`Pair256`].
    codes: [[i8; 16]; 4],
    scales: [f32; 4],
}

/// The four activation rows of a tile. Rows that are not there are the first again, and their
/// products are not stored.
struct Acts {
    rows: [*const u8; ACTS],
    pairs: [RowPair; ACTS],
    n: usize,
}

impl Acts {
    fn new(job: &Job<'_>, pairs: &[RowPair]) -> Acts {
        let pairs: [RowPair; ACTS] = std::array::from_fn(|i| *pairs.get(i).unwrap_or(&pairs[0]));
        Acts {
            rows: pairs.map(|pair| job.act(pair)),
            pairs,
            n: 0,
        }
    }

    /// Sixteen codes of every row from `at` on, as two vectors of eight and eight for each two rows.
    ///
    /// # Safety
    /// They are there, and the machine has NEON.
    #[inline(always)]
    unsafe fn codes(&self, at: usize) -> [[int8x16_t; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            [0, 2].map(|i| {
                let a = vreinterpretq_s64_s8(vld1q_s8(self.rows[i].add(at).cast()));
                let b = vreinterpretq_s64_s8(vld1q_s8(self.rows[i + 1].add(at).cast()));
                [
                    vreinterpretq_s8_s64(vzip1q_s64(a, b)),
                    vreinterpretq_s8_s64(vzip2q_s64(a, b)),
                ]
            })
        }
    }

    /// The scales at a byte of the rows, for the lanes of each two rows.
    ///
    /// # Safety
    /// As [`Acts::codes`].
    #[inline(always)]
    unsafe fn scales(&self, at: usize) -> [float32x4_t; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            [0, 2].map(|i| {
                let [a, b] = [i, i + 1].map(|i| *self.rows[i].add(at).cast::<f32>());
                vld1q_f32([a, b, a, b].as_ptr())
            })
        }
    }

    /// Stores sums of pairs of weight rows from row `o` on, of which there are `n`.
    ///
    /// # Safety
    /// The outputs are valid.
    #[inline(always)]
    unsafe fn store(&self, job: &Job<'_>, sums: [[float32x4_t; 2]; 2], o: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            for (w, sums) in sums.into_iter().enumerate() {
                for (a, sum) in sums.into_iter().enumerate() {
                    let mut lanes = [0.0; 4];
                    vst1q_f32(lanes.as_mut_ptr(), sum);
                    for (lane, sum) in lanes.into_iter().enumerate() {
                        let (row, act) = (2 * w + lane / 2, 2 * a + lane % 2);
                        if row < n && act < self.n {
                            *job.out(self.pairs[act], o + row) = sum;
                        }
                    }
                }
            }
        }
    }
}

/// The weight rows of a panel from row `o` on: the last stands for those that are not there.
fn rows(job: &Job<'_>, o: usize, n: usize) -> [*const u8; ROWS] {
    std::array::from_fn(|i| {
        let row = o + i.min(n - 1);
        job.weights.as_ptr().wrapping_add(row * job.row_bytes)
    })
}

/// Eights of two rows side by side.
///
/// # Safety
/// The machine has NEON, and two times 16 codes fit.
#[inline(always)]
unsafe fn beside(a: int8x16_t, b: int8x16_t, out: *mut [i8; 16]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
        vst1q_s8(out.cast(), vreinterpretq_s8_s64(vzip1q_s64(a, b)));
        vst1q_s8(out.add(1).cast(), vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    }
}

/// # Safety
/// As [`crate::kernels::RowDots`], inside an entry point with matrix products.
#[inline(always)]
unsafe fn row_dots_256<T: Type256>(job: &Job<'_>, scratch: &mut Scratch) {
    let n_blocks = job.n_in / 256;
    // SAFETY: every bit pattern is a block; scratch has room for two of every two rows, which
    // take less than its bytes for 256 elements each.
    let panel = unsafe { &mut scratch.align_to_mut::<Pair256>().1[..2 * n_blocks] };
    let n_weights = job.n_weights();
    for o in (0..n_weights).step_by(ROWS) {
        let n = (n_weights - o).min(ROWS);
        let rows = rows(job, o, n);
        // SAFETY: the caller's promise: rows have as many blocks, of alignment 1.
        unsafe {
            for (b, pairs) in panel.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                for (w, pair) in pairs.iter_mut().enumerate() {
                    let mut blocks = [Codes::ZERO; 2];
                    for (row, block) in rows[2 * w..].iter().zip(&mut blocks) {
                        T::unpack(&*row.cast::<T::Block>().add(b), block);
                    }
                    join::<T>(&blocks, pair);
                }
            }
            for group in job.pairs.chunks(ACTS) {
                let mut acts = Acts::new(job, group);
                acts.n = group.len();
                tile_256::<T>(job, panel, &acts, o, n);
            }
        }
    }
}

/// Puts the blocks of two rows together.
///
/// # Safety
/// The machine has NEON.
#[inline(always)]
unsafe fn join<T: Type256>([a, b]: &[Codes; 2], out: &mut Pair256) {
    // SAFETY: the caller's promise; everything is within the arrays.
    unsafe {
        for i in 0..16 {
            let [a, b] = [a, b].map(|block| vld1q_s8(block.codes.as_ptr().add(16 * i)));
            beside(a, b, out.codes.as_mut_ptr().add(2 * i));
        }
        for (k, scales) in out.scales.iter_mut().enumerate() {
            *scales = [a.scales[k], a.scales[k], b.scales[k], b.scales[k]];
        }
        out.d = [a.d, a.d, b.d, b.d];
        if T::HAS_MIN {
            out.mins = [a.mins, b.mins];
            out.dmin = [a.dmin, a.dmin, b.dmin, b.dmin];
        }
    }
}

/// # Safety
/// As [`row_dots_256`].
#[inline(always)]
unsafe fn tile_256<T: Type256>(job: &Job<'_>, panel: &[Pair256], acts: &Acts, o: usize, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; 2];
        for (b, weights) in panel.as_chunks::<2>().0.iter().enumerate() {
            let mut products = [[vdupq_n_s32(0); 2]; 2];
            for k in 0..16 {
                let codes = acts.codes(256 * b + 16 * k);
                for w in 0..2 {
                    let [low, high] = [2 * k, 2 * k + 1]
                        .map(|i| vld1q_s8(weights[w].codes.as_ptr().add(i).cast()));
                    let scales = vld1q_s32(weights[w].scales[k].as_ptr());
                    for a in 0..2 {
                        let product = matrix(vdupq_n_s32(0), low, codes[a][0]);
                        let product = matrix(product, high, codes[a][1]);
                        products[w][a] = vmlaq_s32(products[w][a], product, scales);
                    }
                }
            }
            let act_scales = acts.scales(q8k_scales(job.n_in) + 4 * b);
            for w in 0..2 {
                let d = vld1q_f32(weights[w].d.as_ptr());
                for a in 0..2 {
                    let mut block_sum = vmulq_f32(d, vcvtq_f32_s32(products[w][a]));
                    if T::HAS_MIN {
                        let [a0, a1] = [2 * a, 2 * a + 1]
                            .map(|i| acts.rows[i].add(q8k_sums(job.n_in) + 64 * b).cast::<i32>());
                        let [m0, m1] = &weights[w].mins;
                        let mins = sums_of_lanes([
                            min_sum(m0, a0),
                            min_sum(m0, a1),
                            min_sum(m1, a0),
                            min_sum(m1, a1),
                        ]);
                        let dmin = vld1q_f32(weights[w].dmin.as_ptr());
                        block_sum = vfmaq_f32(block_sum, dmin, vcvtq_f32_s32(mins));
                    }
                    sums[w][a] = vfmaq_f32(sums[w][a], block_sum, act_scales[a]);
                }
            }
        }
        acts.store(job, sums, o, n);
    }
}

/// # Safety
/// As [`row_dots_256`].
#[inline(always)]
unsafe fn row_dots_32<T: Type32>(job: &Job<'_>, scratch: &mut Scratch) {
    let n_blocks = job.n_in / 32;
    // SAFETY: every bit pattern is a block; scratch has room for two of every two rows.
    let panel = unsafe { &mut scratch.align_to_mut::<Pair32>().1[..2 * n_blocks] };
    let n_weights = job.n_weights();
    for o in (0..n_weights).step_by(ROWS) {
        let n = (n_weights - o).min(ROWS);
        let rows = rows(job, o, n);
        // SAFETY: the caller's promise: rows have as many blocks.
        unsafe {
            for (b, pairs) in panel.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let blocks = rows.map(|row| row.add(T::BYTES * b));
                let mut scales = [0.0; ROWS];
                vst1q_f32(scales.as_mut_ptr(), T::scales(blocks));
                for (w, pair) in pairs.iter_mut().enumerate() {
                    let [first, second] = [2 * w, 2 * w + 1].map(|i| T::codes(blocks[i]));
                    for half in 0..2 {
                        let out = pair.codes.as_mut_ptr().add(2 * half);
                        beside(first[half], second[half], out);
                    }
                    let (s, t) = (scales[2 * w], scales[2 * w + 1]);
                    pair.scales = [s, s, t, t];
                }
            }
            for group in job.pairs.chunks(ACTS) {
                let mut acts = Acts::new(job, group);
                acts.n = group.len();
                tile_32(job, panel, &acts, o, n);
            }
        }
    }
}

/// # Safety
/// As [`row_dots_256`].
#[inline(always)]
unsafe fn tile_32(job: &Job<'_>, panel: &[Pair32], acts: &Acts, o: usize, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; 2];
        for (b, weights) in panel.as_chunks::<2>().0.iter().enumerate() {
            let mut products = [[vdupq_n_s32(0); 2]; 2];
            for half in 0..2 {
                let codes = acts.codes(32 * b + 16 * half);
                for w in 0..2 {
                    for eight in 0..2 {
                        let at = weights[w].codes.as_ptr().add(2 * half + eight);
                        let weights = vld1q_s8(at.cast());
                        for a in 0..2 {
                            products[w][a] = matrix(products[w][a], weights, codes[a][eight]);
                        }
                    }
                }
            }
            let act_scales = acts.scales(q8_scales(job.n_in) + 4 * b);
            for w in 0..2 {
                let scales = vld1q_f32(weights[w].scales.as_ptr());
                for a in 0..2 {
                    let products = vcvtq_f32_s32(products[w][a]);
                    let scales = vmulq_f32(scales, act_scales[a]);
                    sums[w][a] = vfmaq_f32(sums[w][a], products, scales);
                }
            }
        }
        acts.store(job, sums, o, n);
    }
}

macro_rules! entries {
    ($($name:ident = $of:ident::<$ty:ty>;)*) => {
        $(
            /// # Safety
            /// As [`crate::kernels::RowDots`], on a machine with matrix products.
            #[target_feature(enable = "neon,dotprod,i8mm")]
            pub(super) unsafe fn $name(_: Cpu, job: &Job<'_>, scratch: &mut Scratch) {
                // SAFETY: the caller's promise; the instructions are enabled here.
                unsafe { $of::<$ty>(job, scratch) }
            }
        )*
    };
}

entries! {
    q8_0 = row_dots_32::<Q8_0>;
    mxfp4 = row_dots_32::<Mxfp4>;
    q2_k = row_dots_256::<Q2K>;
    q4_k = row_dots_256::<Q4K>;
    q6_k = row_dots_256::<Q6K>;
    iq2_xxs = row_dots_256::<Iq2Xxs>;
}
