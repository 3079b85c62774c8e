//! `y = scale * v - min`: Q2_K, Q4_K, Q5_K. The `G` groups of `N` are searched side by side.

use super::fit::{
    Half, byte, codes, fit_multiples, inverses, nearest_within, plus, side_by_side, starts, times,
};
use crate::quant::block::{BlockQ2K, BlockQ4K, BlockQ5K};

/// Starting scales of a group, in steps of a fifth of a code around the whole range.
const SPREAD: i32 = 5;
/// Times that a group's scale and min are refitted to the codes of the best so far.
const REFITS: usize = 2;
/// Times that the block's scales are refitted to the codes.
const ROUNDS: usize = 2;

/// Groups fitted by themselves.
struct Fitted<const G: usize> {
    error: [f32; G],
    scale: [f32; G],
    min: [f32; G],
    /// How much the error grows with the square of a change of the scale, the min following.
    scale_weight: [f32; G],
    min_weight: [f32; G],
}

/// Codes of a block of `G` groups.
struct Codes<const G: usize> {
    d: Half,
    dmin: Half,
    scale: [u8; G],
    min: [u8; G],
    v: [u8; 256],
}

/// Codes of a block without those of the elements, and what they cost.
#[derive(Clone, Copy)]
struct Chosen<const G: usize> {
    error: f32,
    d: Half,
    dmin: Half,
    scale: [f32; G],
    min: [f32; G],
}

/// Sums over each group.
struct Sums<const G: usize> {
    low: [f32; G],
    high: [f32; G],
    w: [f32; G],
    wx: [f32; G],
    wxx: [f32; G],
}

impl<const G: usize> Sums<G> {
    #[inline(always)]
    fn of<const N: usize>(x: &[[f32; G]; N], w: &[[f32; G]; N]) -> Self {
        let zero = [0.0f32; G];
        let mut sums = Sums {
            low: zero,
            high: zero,
            w: zero,
            wx: zero,
            wxx: zero,
        };
        for (x, w) in x.iter().zip(w) {
            for g in 0..G {
                sums.low[g] = if x[g] < sums.low[g] {
                    x[g]
                } else {
                    sums.low[g]
                };
                sums.high[g] = if x[g] > sums.high[g] {
                    x[g]
                } else {
                    sums.high[g]
                };
                let wx = w[g] * x[g];
                sums.w[g] += w[g];
                sums.wx[g] += wx;
                sums.wxx[g] += wx * x[g];
            }
        }
        sums
    }
}

impl<const G: usize> Fitted<G> {
    /// Tries scales and mins fitted to the codes of `(x + base) * inverse`.
    #[inline(always)]
    fn take<const N: usize>(
        &mut self,
        x: &[[f32; G]; N],
        w: &[[f32; G]; N],
        top: f32,
        sums: &Sums<G>,
        inverse: &[f32; G],
        base: &[f32; G],
    ) {
        let (mut v1, mut v2, mut xv) = ([0.0f32; G], [0.0f32; G], [0.0f32; G]);
        for (x, w) in x.iter().zip(w) {
            for g in 0..G {
                let v = nearest_within(inverse[g] * (x[g] + base[g]), 0.0, top);
                let wv = w[g] * v;
                v1[g] += wv;
                v2[g] += wv * v;
                xv[g] += wv * x[g];
            }
        }
        for g in 0..G {
            let determinant = sums.w[g] * v2[g] - v1[g] * v1[g];
            let free = (
                (sums.w[g] * xv[g] - sums.wx[g] * v1[g]) / determinant,
                (v2[g] * sums.wx[g] - v1[g] * xv[g]) / determinant,
            );
            // A min below 0 cannot be said.
            let scale = if free.1 > 0.0 { xv[g] / v2[g] } else { free.0 };
            let shift = if free.1 > 0.0 { 0.0 } else { free.1 };
            let error = sums.wxx[g] - 2.0 * (scale * xv[g] + shift * sums.wx[g])
                + scale * (scale * v2[g] + 2.0 * shift * v1[g])
                + shift * shift * sums.w[g];
            if determinant > 0.0 && scale > 0.0 && error < self.error[g] {
                self.error[g] = error;
                self.scale[g] = scale;
                self.min[g] = -shift;
                self.scale_weight[g] = v2[g] - v1[g] * v1[g] / sums.w[g];
            }
        }
    }
}

/// The best scale and min of each group, min at least 0, `v` from 0 to `top`.
#[inline(always)]
fn fit_groups<const G: usize, const N: usize>(
    x: &[[f32; G]; N],
    w: &[[f32; G]; N],
    top: f32,
) -> Fitted<G> {
    let sums = Sums::of(x, w);
    let base = times(&sums.low, -1.0);
    let mut best = Fitted {
        error: [f32::INFINITY; G],
        scale: [0.0; G],
        min: base,
        scale_weight: [0.0; G],
        min_weight: sums.w,
    };
    let mut width = sums.high;
    for g in 0..G {
        width[g] -= sums.low[g];
    }
    let per_width = inverses(&width);
    for step in -SPREAD..=SPREAD {
        let inverse = times(&per_width, top + 0.2 * step as f32);
        best.take(x, w, top, &sums, &inverse, &base);
    }
    for _ in 0..REFITS {
        let (inverse, base) = (inverses(&best.scale), best.min);
        best.take(x, w, top, &sums, &inverse, &base);
    }
    for weight in &mut best.scale_weight {
        *weight = weight.max(0.0);
    }
    best
}

/// The block's scale for the groups' scales, or mins.
#[inline(always)]
fn fit_scales<const G: usize>(values: &[f32; G], weights: &[f32; G], code_top: f32) -> f32 {
    let largest = values.iter().copied().fold(0.0, f32::max);
    let code = |q: f32| nearest_within(q, 0.0, code_top);
    fit_multiples(values, weights, starts(largest, code_top), code)
}

/// Codes of a block whose groups have `N` elements; codes of scales and mins up to `code_top`,
/// elements up to `top`.
#[inline(always)]
fn encode<const G: usize, const N: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    top: f32,
    code_top: f32,
) -> Codes<G> {
    let (x, w) = (side_by_side::<N, G>(x), side_by_side::<N, G>(w));
    let fitted = fit_groups(&x, &w, top);
    let mut d = fit_scales(&fitted.scale, &fitted.scale_weight, code_top);
    let mut dmin = fit_scales(&fitted.min, &fitted.min_weight, code_top);
    let mut best: Option<Chosen<G>> = None;
    for _ in 0..ROUNDS {
        let (d_half, dmin_half) = (Half::of(d), Half::of(dmin));
        let (d_now, dmin_now) = (d_half.value(), dmin_half.value());
        let (middle, middle_min) = match &best {
            Some(chosen) => (chosen.scale, chosen.min),
            None => {
                let inverse = inverses(&[d_now, dmin_now]);
                (
                    codes(&fitted.scale, inverse[0], 0.0, code_top),
                    codes(&fitted.min, inverse[1], 0.0, code_top),
                )
            }
        };
        let mut least = [f32::INFINITY; G];
        let mut chosen = Chosen {
            error: 0.0,
            d: d_half,
            dmin: dmin_half,
            scale: [0.0; G],
            min: [0.0; G],
        };
        for step in [0.0, -1.0, 1.0] {
            let c = plus(&middle, step);
            let scale = times(&c, d_now);
            let inverse = inverses(&scale);
            for step in [0.0, -1.0, 1.0] {
                let m = plus(&middle_min, step);
                let min = times(&m, dmin_now);
                let mut e = [0.0f32; G];
                for (x, w) in x.iter().zip(&w) {
                    for g in 0..G {
                        let v = nearest_within((x[g] + min[g]) * inverse[g], 0.0, top);
                        let r = scale[g] * v - min[g] - x[g];
                        e[g] += w[g] * r * r;
                    }
                }
                for g in 0..G {
                    let is_code =
                        c[g] >= 0.0 && c[g] <= code_top && m[g] >= 0.0 && m[g] <= code_top;
                    if is_code && e[g] < least[g] {
                        least[g] = e[g];
                        chosen.scale[g] = c[g];
                        chosen.min[g] = m[g];
                    }
                }
            }
        }
        chosen.error = least.iter().sum();
        if best.is_none_or(|best| chosen.error < best.error) {
            best = Some(chosen);
        }
        // x = d s - dmin m in the least squares.
        let inverse = inverses(&times(&chosen.scale, d_now));
        let min = times(&chosen.min, dmin_now);
        let mut sums = [[0.0f32; G]; 5];
        for (x, w) in x.iter().zip(&w) {
            for g in 0..G {
                let v = nearest_within((x[g] + min[g]) * inverse[g], 0.0, top);
                let (s, m) = (chosen.scale[g] * v, chosen.min[g]);
                let (ws, wm) = (w[g] * s, w[g] * m);
                sums[0][g] += ws * s;
                sums[1][g] += ws * m;
                sums[2][g] += wm * m;
                sums[3][g] += ws * x[g];
                sums[4][g] += wm * x[g];
            }
        }
        let [ss, sm, mm, xs, xm] = sums.map(|sums| sums.iter().sum::<f32>());
        let determinant = ss * mm - sm * sm;
        if determinant > 0.0 {
            d = (xs * mm - xm * sm) / determinant;
            dmin = (xs * sm - xm * ss) / determinant;
        } else if ss > 0.0 {
            d = xs / ss;
        }
        d = d.max(0.0);
        dmin = dmin.max(0.0);
    }
    let Some(chosen) = best else {
        unreachable!("there is a first round")
    };
    let inverse = inverses(&times(&chosen.scale, chosen.d.value()));
    let min = times(&chosen.min, chosen.dmin.value());
    let mut found = Codes {
        d: chosen.d,
        dmin: chosen.dmin,
        scale: chosen.scale.map(|c| c as u8),
        min: chosen.min.map(|m| m as u8),
        v: [0; 256],
    };
    for (i, x) in x.iter().enumerate() {
        for g in 0..G {
            found.v[N * g + i] = byte(nearest_within((x[g] + min[g]) * inverse[g], 0.0, top));
        }
    }
    found
}

#[inline(always)]
pub(super) fn q2_k(x: &[f32; 256], w: &[f32; 256]) -> BlockQ2K {
    let codes: Codes<16> = encode::<16, 16>(x, w, 3.0, 15.0);
    let mut block = BlockQ2K {
        scales: std::array::from_fn(|g| codes.scale[g] | (codes.min[g] << 4)),
        qs: [0; 64],
        d: codes.d.bits(),
        dmin: codes.dmin.bits(),
    };
    for (e, v) in codes.v.iter().enumerate() {
        let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
        block.qs[32 * n + l] |= v << (2 * r);
    }
    block
}

/// Eight 6-bit scales and mins in 12 bytes.
fn pack_scales(scale: [u8; 8], min: [u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scale[j] | ((scale[j + 4] >> 4) << 6);
        out[j + 4] = min[j] | ((min[j + 4] >> 4) << 6);
        out[j + 8] = (scale[j + 4] & 15) | ((min[j + 4] & 15) << 4);
    }
    out
}

/// The low nibbles of codes, as Q4_K and Q5_K store them.
fn pack_nibbles(v: &[u8; 256]) -> [u8; 128] {
    let mut qs = [0; 128];
    for (e, v) in v.iter().enumerate() {
        qs[32 * (e / 64) + e % 32] |= (v & 15) << (4 * (e / 32 % 2));
    }
    qs
}

#[inline(always)]
pub(super) fn q4_k(x: &[f32; 256], w: &[f32; 256]) -> BlockQ4K {
    let codes: Codes<8> = encode::<8, 32>(x, w, 15.0, 63.0);
    BlockQ4K {
        d: codes.d.bits(),
        dmin: codes.dmin.bits(),
        scales: pack_scales(codes.scale, codes.min),
        qs: pack_nibbles(&codes.v),
    }
}

#[inline(always)]
pub(super) fn q5_k(x: &[f32; 256], w: &[f32; 256]) -> BlockQ5K {
    let codes: Codes<8> = encode::<8, 32>(x, w, 31.0, 63.0);
    let mut qh = [0; 32];
    for (e, v) in codes.v.iter().enumerate() {
        qh[e % 32] |= (v >> 4) << (e / 32);
    }
    BlockQ5K {
        d: codes.d.bits(),
        dmin: codes.dmin.bits(),
        scales: pack_scales(codes.scale, codes.min),
        qh,
        qs: pack_nibbles(&codes.v),
    }
}
