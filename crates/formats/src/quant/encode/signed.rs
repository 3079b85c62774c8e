//! `y = scale * v` with `v` below and above zero: Q3_K, Q6_K.

use super::fit::{Half, LANES, extreme, fit_multiples, nearest_within, parts, total};
use crate::quant::block::{BlockQ3K, BlockQ6K};

/// Times that the block's scale is refitted to the codes.
const ROUNDS: usize = 2;

/// Codes of a block of 16 groups of 16.
struct Codes {
    d: Half,
    scale: [i8; 16],
    v: [i8; 256],
}

/// Starting scales for codes from `-top` to `top - 1`: the largest magnitude at either end, and
/// fifths of a code around.
pub(super) fn both_ends(values: &[f32], top: f32) -> impl Iterator<Item = f32> + use<> {
    let largest = extreme(values);
    (-4..=4).flat_map(move |i| {
        let off = 0.2 * i as f32 * (top / 8.0).max(1.0);
        [-largest / (top + off), largest / (top - 1.0 + off)]
    })
}

#[inline(always)]
fn encode(x: &[f32; 256], w: &[f32; 256], top: f32, code_top: f32) -> Codes {
    let (xs, ws) = (x.as_chunks::<16>().0, w.as_chunks::<16>().0);
    let value = |q: f32| nearest_within(q, -top, top - 1.0);
    let code = |q: f32| nearest_within(q, -code_top, code_top - 1.0);
    let mut scales = [0.0; 16];
    let mut weights = [0.0; 16];
    for g in 0..16 {
        scales[g] = fit_multiples(&xs[g], &ws[g], both_ends(&xs[g], top), value);
        if scales[g] != 0.0 {
            let square = |(x, w): (&f32, &f32)| w * value(x / scales[g]).powi(2);
            weights[g] = xs[g].iter().zip(&ws[g]).map(square).sum();
        }
    }
    let mut d = fit_multiples(&scales, &weights, both_ends(&scales, code_top), code);
    let mut best: Option<(f32, Codes)> = None;
    let mut around: Option<[i8; 16]> = None;
    for _ in 0..ROUNDS {
        let mut codes = Codes {
            d: Half::of(d),
            scale: [0; 16],
            v: [0; 256],
        };
        let d_now = codes.d.value();
        let (mut error, mut along, mut square) = (0.0, 0.0, 0.0);
        for g in 0..16 {
            let middle = match around {
                Some(scale) => f32::from(scale[g]),
                None if d_now != 0.0 => code(scales[g] / d_now),
                None => 0.0,
            };
            let mut least = f32::INFINITY;
            for c in [middle, middle - 1.0, middle + 1.0] {
                if !(-code_top..code_top).contains(&c) {
                    continue;
                }
                let scale = d_now * c;
                let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
                let mut e = [0.0; LANES];
                for (x, w) in parts(&xs[g]).zip(parts(&ws[g])) {
                    for i in 0..LANES {
                        let r = scale * value(x[i] * inverse) - x[i];
                        e[i] += w[i] * r * r;
                    }
                }
                let e = total(e);
                if e < least {
                    least = e;
                    codes.scale[g] = c as i8;
                }
            }
            error += least;
            let c = f32::from(codes.scale[g]);
            let scale = d_now * c;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            for i in 0..16 {
                let v = value(xs[g][i] * inverse);
                codes.v[16 * g + i] = v as i8;
                along += ws[g][i] * xs[g][i] * c * v;
                square += ws[g][i] * (c * v) * (c * v);
            }
        }
        around = Some(codes.scale);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, codes));
        }
        if square > 0.0 {
            d = along / square;
        }
    }
    match best {
        Some((_, codes)) => codes,
        None => unreachable!("there is a first round"),
    }
}

#[inline(always)]
pub(super) fn q3_k(x: &[f32; 256], w: &[f32; 256]) -> BlockQ3K {
    let codes = encode(x, w, 4.0, 32.0);
    let mut block = BlockQ3K {
        hmask: [0; 32],
        qs: [0; 64],
        scales: [0; 12],
        d: codes.d.bits(),
    };
    for (k, scale) in codes.scale.iter().enumerate() {
        let s = (scale + 32) as u8;
        block.scales[k % 8] |= (s & 15) << (4 * (k / 8));
        block.scales[8 + k % 4] |= (s >> 4) << (2 * (k / 4));
    }
    for (e, v) in codes.v.iter().enumerate() {
        let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
        let v = (v + 4) as u8;
        block.qs[32 * n + l] |= (v & 3) << (2 * r);
        block.hmask[l] |= (v >> 2) << (4 * n + r);
    }
    block
}

#[inline(always)]
pub(super) fn q6_k(x: &[f32; 256], w: &[f32; 256]) -> BlockQ6K {
    let codes = encode(x, w, 32.0, 128.0);
    let mut block = BlockQ6K {
        ql: [0; 128],
        qh: [0; 64],
        scales: codes.scale,
        d: codes.d.bits(),
    };
    for (e, v) in codes.v.iter().enumerate() {
        let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
        let v = (v + 32) as u8;
        block.ql[64 * n + 32 * (r & 1) + l] |= (v & 15) << (4 * (r / 2));
        block.qh[32 * n + l] |= (v >> 4) << (2 * r);
    }
    block
}
