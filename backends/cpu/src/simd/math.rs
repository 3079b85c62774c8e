//! Functions of a vector.

use super::Simd;

/// `e^x = 2^n e^r` with `n` the nearest integer to `x / ln 2`. The reduction subtracts `n ln 2` in
/// two parts, the first short enough for its products with `n` to be exact, and leaves
/// `|r| <= ln(2) / 2`, where the polynomial of the Cephes library's `expf` is good to half a unit.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Beyond these the result is 0 or infinity, and `n` stays in a range that `exp2` takes twice.
    let x = s.max(s.min(x, s.splat(90.0)), s.splat(-110.0));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-355.0 / 512.0), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    // In two steps, because 2^n alone may not be a normal number when the result is one.
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.exp2(half)), s.exp2(s.sub(n, half)))
}

/// `ln(1 + x) = 2 artanh(x / (2 + x))`, as the series of the inverse hyperbolic tangent, whose
/// argument is at most 1/3 here.
#[inline(always)]
pub(super) fn ln_1p_unit<S: Simd>(s: S, x: S::F) -> S::F {
    let t = s.div(x, s.add(x, s.splat(2.0)));
    let t2 = s.mul(t, t);
    let mut p = s.splat(1.0 / 17.0);
    for n in [15, 13, 11, 9, 7, 5, 3] {
        p = s.fma(p, t2, s.splat(1.0 / n as f32));
    }
    let t = s.add(t, t);
    s.fma(s.mul(t, t2), p, t)
}
