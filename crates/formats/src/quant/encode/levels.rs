//! `y = scale * T[q]` with a fixed table of 16 levels: IQ4_NL, IQ4_XS, MXFP4.

use zerocopy::little_endian::U16;

use super::fit::{Half, extreme, fit_multiples};
use super::signed::both_ends;
use crate::quant::block::{BlockIq4Nl, BlockIq4Xs, BlockMxfp4};
use crate::quant::grid::{IQ4_LEVELS, MXFP4_DOUBLED};

/// Times that the block's scale is refitted to the codes.
const ROUNDS: usize = 2;

/// For every integer from -128 to 127 the place of the nearest level.
const NEAREST: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let x = i as i32 - 128;
        let mut best = 0;
        let mut k = 1;
        while k < 16 {
            if (IQ4_LEVELS[k] as i32 - x).abs() < (IQ4_LEVELS[best] as i32 - x).abs() {
                best = k;
            }
            k += 1;
        }
        table[i] = best as u8;
        i += 1;
    }
    table
};

/// The place of the level nearest to `x`.
#[inline(always)]
fn place(x: f32) -> usize {
    let i = super::fit::nearest_within(x, -128.0, 127.0) as i32 + 128;
    NEAREST[i as usize] as usize
}

#[inline(always)]
fn level(x: f32) -> f32 {
    f32::from(IQ4_LEVELS[place(x)])
}

/// Starting scales: the largest magnitude at either end of the levels, and around.
fn starts(x: &[f32]) -> impl Iterator<Item = f32> + use<> {
    let largest = extreme(x);
    (-5..=5).flat_map(move |i| {
        let off = 6.0 * i as f32;
        [largest / (-127.0 + off), largest / (113.0 + off)]
    })
}

/// Codes in halves: element `i < 16` low in byte `i`, `16 + i` high.
fn halves(code: impl Fn(usize) -> u8) -> [u8; 16] {
    std::array::from_fn(|i| code(i) | (code(16 + i) << 4))
}

#[inline(always)]
pub(super) fn iq4_nl(x: &[f32; 32], w: &[f32; 32]) -> BlockIq4Nl {
    let d = Half::of(fit_multiples(x, w, starts(x), level));
    let inverse = if d.value() != 0.0 {
        1.0 / d.value()
    } else {
        0.0
    };
    BlockIq4Nl {
        d: d.bits(),
        qs: halves(|i| place(x[i] * inverse) as u8),
    }
}

#[inline(always)]
pub(super) fn iq4_xs(x: &[f32; 256], w: &[f32; 256]) -> BlockIq4Xs {
    let (x, w) = (x.as_chunks::<32>().0, w.as_chunks::<32>().0);
    let mut scales = [0.0; 8];
    let mut weights = [0.0; 8];
    for g in 0..8 {
        scales[g] = fit_multiples(&x[g], &w[g], starts(&x[g]), level);
        if scales[g] != 0.0 {
            let square = |(x, w): (&f32, &f32)| w * level(x / scales[g]).powi(2);
            weights[g] = x[g].iter().zip(&w[g]).map(square).sum();
        }
    }
    let code = |q: f32| super::fit::nearest_within(q, -32.0, 31.0);
    let mut d = fit_multiples(&scales, &weights, both_ends(&scales, 32.0), code);
    let mut best: Option<(f32, Half, [i8; 8])> = None;
    let mut around: Option<[i8; 8]> = None;
    for _ in 0..ROUNDS {
        let half = Half::of(d);
        let d_now = half.value();
        let mut codes = [0i8; 8];
        let (mut error, mut along, mut square) = (0.0, 0.0, 0.0);
        for g in 0..8 {
            let middle = match around {
                Some(codes) => f32::from(codes[g]),
                None if d_now != 0.0 => code(scales[g] / d_now),
                None => 0.0,
            };
            let mut least = f32::INFINITY;
            for c in [middle, middle - 1.0, middle + 1.0] {
                if !(-32.0..32.0).contains(&c) {
                    continue;
                }
                let scale = d_now * c;
                let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
                let mut e = 0.0;
                for i in 0..32 {
                    let r = scale * level(x[g][i] * inverse) - x[g][i];
                    e += w[g][i] * r * r;
                }
                if e < least {
                    least = e;
                    codes[g] = c as i8;
                }
            }
            error += least;
            let c = f32::from(codes[g]);
            let scale = d_now * c;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            for i in 0..32 {
                let y = c * level(x[g][i] * inverse);
                along += w[g][i] * x[g][i] * y;
                square += w[g][i] * y * y;
            }
        }
        around = Some(codes);
        if best.as_ref().is_none_or(|(least, ..)| error < *least) {
            best = Some((error, half, codes));
        }
        if square > 0.0 {
            d = along / square;
        }
    }
    let (half, codes) = best.map_or((Half::of(0.0), [0; 8]), |(_, half, codes)| (half, codes));
    let mut block = BlockIq4Xs {
        d: half.bits(),
        scales_h: U16::new(0),
        scales_l: [0; 4],
        qs: [[0; 16]; 8],
    };
    let mut high = 0;
    for g in 0..8 {
        let s = (codes[g] + 32) as u8;
        block.scales_l[g / 2] |= (s & 15) << (4 * (g % 2));
        high |= u16::from(s >> 4) << (2 * g);
        let scale = half.value() * f32::from(codes[g]);
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        block.qs[g] = halves(|i| place(x[g][i] * inverse) as u8);
    }
    block.scales_h = U16::new(high);
    block
}

/// Codes of E2M1 values, doubled, nearest to `x`.
fn e2m1(x: f32) -> u8 {
    let magnitude = x.abs();
    let mut best = 0;
    for code in 1..8 {
        let level = |code: usize| f32::from(MXFP4_DOUBLED[code]);
        if (level(code) - magnitude).abs() < (level(best) - magnitude).abs() {
            best = code;
        }
    }
    best as u8 | if x < 0.0 && best > 0 { 8 } else { 0 }
}

#[inline(always)]
pub(super) fn mxfp4(x: &[f32; 32], w: &[f32; 32]) -> BlockMxfp4 {
    let largest = extreme(x).abs();
    // 12 is the largest doubled level; a block's scale is 2^(s - 128).
    let middle = (largest / 12.0).log2().ceil();
    let mut best = (f32::INFINITY, 0u8);
    if middle.is_finite() {
        for step in [0.0, -1.0, 1.0, -2.0] {
            let s = (middle + step + 128.0).clamp(0.0, 254.0);
            let scale = (s - 128.0).exp2();
            let error = x.iter().zip(w).map(|(&x, &w)| {
                let y = scale * f32::from(MXFP4_DOUBLED[e2m1(x / scale) as usize]);
                w * (x - y) * (x - y)
            });
            let error: f32 = error.sum();
            if error < best.0 {
                best = (error, s as u8);
            }
        }
    }
    let scale = (f32::from(best.1) - 128.0).exp2();
    BlockMxfp4 {
        e: best.1,
        qs: halves(|i| if largest > 0.0 { e2m1(x[i] / scale) } else { 0 }),
    }
}
