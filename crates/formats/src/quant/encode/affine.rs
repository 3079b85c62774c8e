//! `y = scale * v - min`: Q2_K, Q4_K, Q5_K.

use super::fit::{Half, LANES, fit_multiples, nearest_within, parts, starts, total};
use crate::quant::block::{BlockQ2K, BlockQ4K, BlockQ5K};

/// Starting scales of a group, in steps of a fifth of a code around the whole range.
const SPREAD: i32 = 5;
/// Times that the block's scales are refitted to the codes.
const ROUNDS: usize = 2;

/// A group fitted by itself.
#[derive(Clone, Copy, Default)]
struct Group {
    scale: f32,
    min: f32,
    /// How much the error grows with the square of a change of the scale, the min following.
    scale_weight: f32,
    min_weight: f32,
}

/// Codes of a block of `G` groups.
struct Codes<const G: usize> {
    d: Half,
    dmin: Half,
    scale: [u8; G],
    min: [u8; G],
    v: [u8; 256],
}

/// The best scale and min of a group, min at least 0, `v` from 0 to `top`.
#[inline(always)]
fn fit_group<const N: usize>(x: &[f32; N], w: &[f32; N], top: f32) -> Group {
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(low, f32::max);
    let sum_w: f32 = w.iter().sum();
    let mut best = Group {
        min: -low,
        min_weight: sum_w,
        ..Group::default()
    };
    if high <= low {
        return best;
    }
    let sum_wx: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
    let sum_wxx: f32 = x.iter().zip(w).map(|(x, w)| x * x * w).sum();
    let mut least = f32::INFINITY;
    let mut attempt = |inverse: f32, base: f32| -> Option<(f32, f32)> {
        let (mut v1, mut v2, mut xv) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (x, w) in parts(x).zip(parts(w)) {
            for i in 0..LANES {
                let v = nearest_within(inverse * (x[i] + base), 0.0, top);
                v1[i] += w[i] * v;
                v2[i] += w[i] * v * v;
                xv[i] += w[i] * x[i] * v;
            }
        }
        let (v1, v2, xv) = (total(v1), total(v2), total(xv));
        let determinant = sum_w * v2 - v1 * v1;
        if determinant <= 0.0 {
            return None;
        }
        let mut scale = (sum_w * xv - sum_wx * v1) / determinant;
        let mut shift = (v2 * sum_wx - v1 * xv) / determinant;
        if shift > 0.0 {
            (scale, shift) = (xv / v2, 0.0);
        }
        if scale <= 0.0 {
            return None;
        }
        let error = sum_wxx - 2.0 * (scale * xv + shift * sum_wx)
            + scale * (scale * v2 + 2.0 * shift * v1)
            + shift * shift * sum_w;
        if error < least {
            least = error;
            best = Group {
                scale,
                min: -shift,
                scale_weight: (v2 - v1 * v1 / sum_w).max(0.0),
                min_weight: sum_w,
            };
        }
        Some((scale, -shift))
    };
    for step in -SPREAD..=SPREAD {
        let inverse = (top + 0.2 * step as f32) / (high - low);
        let mut at = (inverse, -low);
        for _ in 0..2 {
            match attempt(at.0, at.1) {
                Some((scale, min)) => at = (1.0 / scale, min),
                None => break,
            }
        }
    }
    best
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
    let (x, w) = (x.as_chunks::<N>().0, w.as_chunks::<N>().0);
    let groups: [Group; G] = std::array::from_fn(|g| fit_group(&x[g], &w[g], top));
    let fit = |values: [f32; G], weights: [f32; G]| {
        let largest = values.iter().copied().fold(0.0, f32::max);
        let code = |q: f32| nearest_within(q, 0.0, code_top);
        fit_multiples(&values, &weights, starts(largest, code_top), code)
    };
    let mut d = fit(groups.map(|g| g.scale), groups.map(|g| g.scale_weight));
    let mut dmin = fit(groups.map(|g| g.min), groups.map(|g| g.min_weight));
    let mut best: Option<(f32, Codes<G>)> = None;
    let mut around: Option<([u8; G], [u8; G])> = None;
    for _ in 0..ROUNDS {
        let mut codes = Codes {
            d: Half::of(d),
            dmin: Half::of(dmin),
            scale: [0; G],
            min: [0; G],
            v: [0; 256],
        };
        let mut error = 0.0;
        // Sums for refitting d and dmin to the codes.
        let (mut ss, mut sm, mut mm, mut xs, mut xm) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
        let (d_now, dmin_now) = (codes.d.value(), codes.dmin.value());
        let ratio = |value: f32, d: f32| if d > 0.0 { value / d } else { 0.0 };
        for g in 0..G {
            let middle = match around {
                Some((scale, min)) => (f32::from(scale[g]), f32::from(min[g])),
                None => (
                    nearest_within(ratio(groups[g].scale, d_now), 0.0, code_top),
                    nearest_within(ratio(groups[g].min, dmin_now), 0.0, code_top),
                ),
            };
            let near = |c: f32| {
                [c, c - 1.0, c + 1.0]
                    .into_iter()
                    .filter(move |c| (0.0..=code_top).contains(c))
            };
            let mut least = f32::INFINITY;
            for sc in near(middle.0) {
                for mn in near(middle.1) {
                    let (scale, min) = (d_now * sc, dmin_now * mn);
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    let mut e = [0.0; LANES];
                    for (x, w) in parts(&x[g]).zip(parts(&w[g])) {
                        for i in 0..LANES {
                            let v = nearest_within((x[i] + min) * inverse, 0.0, top);
                            let r = scale * v - min - x[i];
                            e[i] += w[i] * r * r;
                        }
                    }
                    let e = total(e);
                    if e < least {
                        least = e;
                        (codes.scale[g], codes.min[g]) = (sc as u8, mn as u8);
                    }
                }
            }
            error += least;
            let (sc, mn) = (f32::from(codes.scale[g]), f32::from(codes.min[g]));
            let (scale, min) = (d_now * sc, dmin_now * mn);
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for i in 0..N {
                let v = nearest_within((x[g][i] + min) * inverse, 0.0, top);
                codes.v[N * g + i] = v as u8;
                let (s, wi) = (sc * v, w[g][i]);
                ss += wi * s * s;
                sm += wi * s * mn;
                mm += wi * mn * mn;
                xs += wi * x[g][i] * s;
                xm += wi * x[g][i] * mn;
            }
        }
        around = Some((codes.scale, codes.min));
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, codes));
        }
        // x = d s - dmin m in the least squares.
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
    match best {
        Some((_, codes)) => codes,
        None => unreachable!("there is a first round"),
    }
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
