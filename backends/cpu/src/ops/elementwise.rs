//! Loops over the channels of a row that several ops share.

use crate::lanes::{Lanes, on_every_path};

on_every_path! {
    /// The sum of squares, lane by lane.
    pub(crate) fn sum_of_squares(x: &[f32]) -> f32 = sum_of_squares_lanes;
    /// `x *= factor`.
    pub(crate) fn scale(x: &mut [f32], factor: f32) = scale_lanes;
    /// `x = weight * (x * factor)`.
    pub(crate) fn scale_by(x: &mut [f32], factor: f32, weight: &[f32]) = scale_by_lanes;
    /// `out += x`.
    pub(crate) fn add(x: &[f32], out: &mut [f32]) = add_lanes;
    /// `out = Σ_j weights[j] * rows[j]`, the rows one after another; `weights` may be longer.
    pub(crate) fn weighted_sum(rows: &[f32], weights: &[f32], out: &mut [f32]) = weighted_sum_lanes;
}

/// Reciprocal of the root of the mean square.
pub(crate) fn inverse_rms(cpu: crate::path::Cpu, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(cpu, x) / x.len() as f32 + eps).sqrt()
}

/// # Safety
/// As [`Lanes`]; so for all functions below.
#[inline(always)]
unsafe fn sum_of_squares_lanes<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: the caller's promise; vectors within the slice.
    unsafe {
        // Four sums in flight hide the latency of additions.
        let mut sums = [L::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * L::N <= x.len() {
            for (k, sum) in sums.iter_mut().enumerate() {
                let v = L::load(x.as_ptr().add(i + k * L::N));
                *sum = v.mul_add(v, *sum);
            }
            i += 4 * L::N;
        }
        while i < x.len() {
            let v = L::load_first(x.as_ptr().add(i), x.len() - i);
            sums[0] = v.mul_add(v, sums[0]);
            i += L::N;
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

/// # Safety
/// See above.
#[inline(always)]
unsafe fn scale_lanes<L: Lanes>(x: &mut [f32], factor: f32) {
    // SAFETY: see above.
    unsafe {
        let n = x.len();
        let factor = L::splat(factor);
        for i in (0..n).step_by(L::N) {
            let at = x.as_mut_ptr().add(i);
            L::load_first(at, n - i).mul(factor).store_first(at, n - i);
        }
    }
}

/// # Safety
/// See above.
#[inline(always)]
unsafe fn scale_by_lanes<L: Lanes>(x: &mut [f32], factor: f32, weight: &[f32]) {
    assert_eq!(x.len(), weight.len());
    // SAFETY: see above.
    unsafe {
        let n = x.len();
        let factor = L::splat(factor);
        for i in (0..n).step_by(L::N) {
            let at = x.as_mut_ptr().add(i);
            let w = L::load_first(weight.as_ptr().add(i), n - i);
            let v = L::load_first(at, n - i).mul(factor);
            w.mul(v).store_first(at, n - i);
        }
    }
}

/// # Safety
/// See above.
#[inline(always)]
unsafe fn add_lanes<L: Lanes>(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    // SAFETY: see above.
    unsafe {
        let n = x.len();
        for i in (0..n).step_by(L::N) {
            let at = out.as_mut_ptr().add(i);
            let v = L::load_first(x.as_ptr().add(i), n - i);
            L::load_first(at, n - i).add(v).store_first(at, n - i);
        }
    }
}

/// # Safety
/// See above.
#[inline(always)]
unsafe fn weighted_sum_lanes<L: Lanes>(rows: &[f32], weights: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(n > 0 && rows.len() / n <= weights.len());
    // SAFETY: see above.
    unsafe {
        for i in (0..n).step_by(L::N) {
            let mut sum = L::splat(0.0);
            for (row, weight) in rows.chunks_exact(n).zip(weights) {
                let v = L::load_first(row.as_ptr().add(i), n - i);
                sum = v.mul_add(L::splat(*weight), sum);
            }
            sum.store_first(out.as_mut_ptr().add(i), n - i);
        }
    }
}
