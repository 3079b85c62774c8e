//! What the searches share: rounding, and fitting one scale to many numbers.

use half::f16;
use zerocopy::little_endian::U16;

/// 1.5 * 2^23: what is added to it is rounded to an integer, which its lowest bits then hold.
const SHIFT: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for magnitudes below 2^22. Unlike [`f32::round`] it becomes
/// two additions on every machine.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    (x + SHIFT) - SHIFT
}

/// The nearest integer as a byte, in two's complement where it is negative.
#[inline(always)]
pub(super) fn byte(x: f32) -> u8 {
    (x + SHIFT).to_bits() as u8
}

/// Sums are kept in so many parts, so that they are computed side by side and come out the same on
/// every machine. Groups and blocks are multiples of it.
pub(super) const LANES: usize = 8;

/// A list of whole [`LANES`] in parts.
#[inline(always)]
pub(super) fn parts(list: &[f32]) -> impl Iterator<Item = &[f32; LANES]> {
    debug_assert!(list.len().is_multiple_of(LANES));
    list.as_chunks::<LANES>().0.iter()
}

/// The sum of the parts.
#[inline(always)]
pub(super) fn total(p: [f32; LANES]) -> f32 {
    ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]))
}

/// The largest of the parts.
#[inline(always)]
pub(super) fn most(mut p: [f32; LANES]) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            p[i] = if p[i + n] > p[i] { p[i + n] } else { p[i] };
        }
    }
    p[0]
}

/// The nearest integer from `low` to `high`; `low` for what is no number. Each comparison is one
/// instruction, which `f32::max` and `f32::min` are not.
#[inline(always)]
pub(super) fn nearest_within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    nearest(if x < high { x } else { high })
}

/// Groups of a block side by side, so that all are searched at once: element `i` of every group,
/// then element `i + 1`. A block has `G` groups of `N`.
#[inline(always)]
pub(super) fn side_by_side<const N: usize, const G: usize>(x: &[f32; 256]) -> [[f32; G]; N] {
    let mut out = [[0.0; G]; N];
    for (i, row) in out.iter_mut().enumerate() {
        for (g, out) in row.iter_mut().enumerate() {
            *out = x[N * g + i];
        }
    }
    out
}

/// Each times a number.
#[inline(always)]
pub(super) fn times<const G: usize>(values: &[f32; G], by: f32) -> [f32; G] {
    let mut out = *values;
    for out in &mut out {
        *out *= by;
    }
    out
}

/// Each and a number.
#[inline(always)]
pub(super) fn plus<const G: usize>(values: &[f32; G], step: f32) -> [f32; G] {
    let mut out = *values;
    for out in &mut out {
        *out += step;
    }
    out
}

/// Each times `by`, rounded and cut to codes from `low` to `high`.
#[inline(always)]
pub(super) fn codes<const G: usize>(values: &[f32; G], by: f32, low: f32, high: f32) -> [f32; G] {
    let mut out = *values;
    for out in &mut out {
        *out = nearest_within(*out * by, low, high);
    }
    out
}

/// One over each; 0 for 0.
#[inline(always)]
pub(super) fn inverses<const G: usize>(scale: &[f32; G]) -> [f32; G] {
    let mut out = [0.0; G];
    for g in 0..G {
        out[g] = if scale[g] != 0.0 { 1.0 / scale[g] } else { 0.0 };
    }
    out
}

/// A scale as a block stores it.
#[derive(Clone, Copy)]
pub(super) struct Half(f16);

impl Half {
    /// The nearest finite half.
    #[inline(always)]
    pub(super) fn of(x: f32) -> Half {
        Half(f16::from_f32(x.clamp(-65504.0, 65504.0)))
    }

    #[inline(always)]
    pub(super) fn value(self) -> f32 {
        self.0.to_f32()
    }

    pub(super) fn bits(self) -> U16 {
        U16::new(self.0.to_bits())
    }
}

/// The `d` for which multiples `d * code`, `code` from `codes`, come closest to `values`: least
/// `sum weights (value - d code)^2` over a range of starting points. `code` rounds `value / d` to
/// a code. 0 when all values are.
#[inline(always)]
pub(super) fn fit_multiples(
    values: &[f32],
    weights: &[f32],
    starts: impl Iterator<Item = f32>,
    code: impl Fn(f32) -> f32,
) -> f32 {
    let mut best = (0.0, 0.0);
    for start in starts {
        if start == 0.0 || !start.is_finite() {
            continue;
        }
        let mut d = start;
        // The second round begins at the fitted scale.
        for _ in 0..2 {
            let (mut along, mut square) = ([0.0; LANES], [0.0; LANES]);
            for (value, weight) in parts(values).zip(parts(weights)) {
                for i in 0..LANES {
                    let c = code(value[i] * (1.0 / d));
                    along[i] += weight[i] * value[i] * c;
                    square[i] += weight[i] * c * c;
                }
            }
            let (along, square) = (total(along), total(square));
            if square <= 0.0 || along == 0.0 {
                break;
            }
            d = along / square;
            // What the multiples take away from the sum of squares of the values.
            let gain = along * along / square;
            if gain > best.0 {
                best = (gain, d);
            }
        }
    }
    best.1
}

/// Starting points for codes from 0 to `top`: the largest value at `top`, a little above, and down
/// to three quarters of it.
pub(super) fn starts(largest: f32, top: f32) -> impl Iterator<Item = f32> {
    (0..20).map(move |i| largest / (top * (1.05 - 0.0175 * i as f32)))
}

/// The value of largest magnitude.
pub(super) fn extreme(values: &[f32]) -> f32 {
    values
        .iter()
        .copied()
        .fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a })
}
