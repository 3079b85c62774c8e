//! 64-bit Arm with the dot products of ARMv8.2, and with the matrix products of ARMv8.6 (`i8mm`)
//! where there are any.
//!
//! Four weight rows are multiplied together, a lane of the f32 sums for each. All that is added up
//! within a block is an integer: products of 16 codes times their integer scale stay below 2^28 in
//! Q6_K, the largest, so the order does not matter, and products by either instruction are the same
//! to the bit.

mod block256;
mod block32;
mod others;
mod panel;

use std::arch::aarch64::*;

use ds4_formats::GgmlType;

use super::{Form, Job, Kernel, Order, Panel, RowDots, RowPair};

/// Activation rows from which unpacking for `smmla` pays.
const MIN_PANEL_ROWS: usize = 4;

/// The kernel of a blocked type.
pub(crate) fn kernel(ty: GgmlType) -> Option<Kernel> {
    let has_matrix = std::arch::is_aarch64_feature_detected!("i8mm");
    let (form, row_dots, matrix): (Form, RowDots, RowDots) = match ty {
        GgmlType::Q8_0 => (Form::Q8(Order::Natural), block32::q8_0, panel::q8_0),
        GgmlType::MXFP4 => (Form::Q8(Order::Natural), block32::mxfp4, panel::mxfp4),
        GgmlType::Q2_K => (Form::Q8K(Order::Natural), block256::q2_k, panel::q2_k),
        GgmlType::Q4_K => (Form::Q8K(Order::Natural), block256::q4_k, panel::q4_k),
        GgmlType::Q6_K => (Form::Q8K(Order::Natural), block256::q6_k, panel::q6_k),
        GgmlType::IQ2_XXS => (Form::Q8K(Order::Natural), block256::iq2_xxs, panel::iq2_xxs),
        _ => return others::kernel(ty),
    };
    let panel = Panel {
        min_rows: MIN_PANEL_ROWS,
        row_dots: matrix,
    };
    Some(Kernel {
        form,
        step: ROWS,
        row_dots,
        panel: has_matrix.then_some(panel),
    })
}

/// Weight rows that are multiplied together.
const ROWS: usize = 4;

/// Weight rows of one type.
trait Rows {
    /// Multiplies `ROWS` weight rows with `R` activation rows, and stores the sums of the first `n`
    /// from row `o` on.
    ///
    /// # Safety
    /// As [`RowDots`], inside an entry point of this path.
    unsafe fn products<const R: usize>(
        job: &Job<'_>,
        rows: [*const u8; ROWS],
        pairs: [RowPair; R],
        o: usize,
        n: usize,
    );
}

/// All products of a job, of four activation rows at a time.
///
/// # Safety
/// As [`RowDots`], inside an entry point of this path.
#[inline(always)]
unsafe fn row_dots<T: Rows>(job: &Job<'_>) {
    let n_weights = job.n_weights();
    for o in (0..n_weights).step_by(ROWS) {
        let n = (n_weights - o).min(ROWS);
        // The last row stands for those that are not there.
        let rows: [*const u8; ROWS] = std::array::from_fn(|i| {
            let row = o + i.min(n - 1);
            job.weights.as_ptr().wrapping_add(row * job.row_bytes)
        });
        let (fours, rest) = job.pairs.as_chunks::<4>();
        // SAFETY: the caller's promise.
        unsafe {
            for group in fours {
                T::products(job, rows, *group, o, n);
            }
            for pair in rest {
                T::products(job, rows, [*pair], o, n);
            }
        }
    }
}

/// `sum` plus four products of signed bytes in each lane. The intrinsic, `vdotq_s32`, is not stable.
///
/// # Safety
/// The machine has the dot products of ARMv8.2.
#[inline(always)]
unsafe fn dot(mut sum: int32x4_t, x: int8x16_t, y: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only.
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

/// `sum` plus the product of 2 rows of 8 signed bytes with 2 others: lanes are x0 y0, x0 y1, x1 y0,
/// x1 y1. The intrinsic, `vmmlaq_s32`, is not stable.
///
/// # Safety
/// The machine has the matrix products of ARMv8.6.
#[inline(always)]
unsafe fn matrix(mut sum: int32x4_t, x: int8x16_t, y: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only.
    unsafe {
        std::arch::asm!(
            "smmla {sum:v}.4s, {x:v}.16b, {y:v}.16b",
            sum = inout(vreg) sum,
            x = in(vreg) x,
            y = in(vreg) y,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The sums of the lanes of four vectors, one in each lane.
///
/// # Safety
/// The machine has NEON.
#[inline(always)]
unsafe fn sums_of_lanes(v: [int32x4_t; 4]) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])) }
}

/// Four f32 from four half floats.
///
/// # Safety
/// The machine has NEON.
#[inline(always)]
unsafe fn floats(halves: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: the instruction reads and writes these registers only. Its intrinsic takes a type
    // that is not stable.
    unsafe {
        std::arch::asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = lateout(vreg) floats,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    floats
}

/// Stores the sums of `n` weight rows from row `o` on.
///
/// # Safety
/// The machine has NEON, and the outputs are valid.
#[inline(always)]
unsafe fn store(sum: float32x4_t, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if n == ROWS {
            vst1q_f32(out, sum);
        } else {
            let mut lanes = [0.0; ROWS];
            vst1q_f32(lanes.as_mut_ptr(), sum);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), out, n);
        }
    }
}
