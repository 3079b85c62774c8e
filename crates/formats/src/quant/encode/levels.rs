//! `y = scale * T[q]` with a fixed table of 16 levels: IQ4_NL, IQ4_XS, MXFP4.

use zerocopy::little_endian::U16;

use super::fit::{
    Half, LANES, byte, extreme, fit_multiples, inverses, most, nearest_within, parts, total,
};
use super::signed::both_ends;
use crate::quant::block::{BlockIq4Nl, BlockIq4Xs, BlockMxfp4};
use crate::quant::grid::IQ4_LEVELS;

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

/// For every integer from -128 to 127 the nearest level.
const LEVEL: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = IQ4_LEVELS[NEAREST[i] as usize] as f32;
        i += 1;
    }
    table
};

/// The place of `x` in the tables.
#[inline(always)]
fn integer(x: f32) -> usize {
    // Within the tables, so that no bound is checked.
    (nearest_within(x, -128.0, 127.0) as i32 + 128) as usize & 255
}

/// The place of the level nearest to `x`.
#[inline(always)]
fn place(x: f32) -> usize {
    NEAREST[integer(x)] as usize
}

/// The level nearest to `x`.
#[inline(always)]
fn level(x: f32) -> f32 {
    LEVEL[integer(x)]
}

/// Sums over a group, each level times `c` at `inverse` of the scale: of `w x y` and of `w y^2`.
#[inline(always)]
fn along_square(x: &[f32; 32], w: &[f32; 32], inverse: f32, c: f32) -> (f32, f32) {
    let (mut along, mut square) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in parts(x).zip(parts(w)) {
        for i in 0..LANES {
            let y = c * level(x[i] * inverse);
            along[i] += w[i] * x[i] * y;
            square[i] += w[i] * y * y;
        }
    }
    (total(along), total(square))
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
    let [inverse] = inverses(&[d.value()]);
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
            weights[g] = along_square(&x[g], &w[g], 1.0 / scales[g], 1.0).1;
        }
    }
    let code = |q: f32| nearest_within(q, -32.0, 31.0);
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
                let [inverse] = inverses(&[scale]);
                let mut e = [0.0; LANES];
                for (x, w) in parts(&x[g]).zip(parts(&w[g])) {
                    for i in 0..LANES {
                        let r = scale * level(x[i] * inverse) - x[i];
                        e[i] += w[i] * r * r;
                    }
                }
                let e = total(e);
                if e < least {
                    least = e;
                    codes[g] = c as i8;
                }
            }
            error += least;
            let c = f32::from(codes[g]);
            let [inverse] = inverses(&[d_now * c]);
            let (a, s) = along_square(&x[g], &w[g], inverse, c);
            along += a;
            square += s;
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
        let [inverse] = inverses(&[half.value() * f32::from(codes[g])]);
        block.qs[g] = halves(|i| place(x[g][i] * inverse) as u8);
    }
    block.scales_h = U16::new(high);
    block
}

/// `2^(s - 128)`, for `s` from 0 to 254.
#[inline(always)]
fn power(s: u32) -> f32 {
    // Below 2^-126 the exponent's bits are zero and the fraction's count halves.
    f32::from_bits(if s < 2 { 1 << (21 + s) } else { (s - 1) << 23 })
}

/// The doubled E2M1 magnitude nearest to a magnitude: integers up to 4, even ones up to 8, 12.
#[inline(always)]
fn e2m1_nearest(magnitude: f32) -> f32 {
    // Adding it rounds to the steps between the numbers of its size.
    const SHIFT: f32 = 12_582_912.0;
    let shift = if magnitude < 4.0 {
        SHIFT
    } else if magnitude < 8.0 {
        2.0 * SHIFT
    } else {
        4.0 * SHIFT
    };
    let rounded = ((if magnitude < 12.0 { magnitude } else { 12.0 }) + shift) - shift;
    if rounded < 12.0 { rounded } else { 12.0 }
}

#[inline(always)]
pub(super) fn mxfp4(x: &[f32; 32], w: &[f32; 32]) -> BlockMxfp4 {
    let mut magnitude = [0.0f32; 32];
    for (magnitude, x) in magnitude.iter_mut().zip(x) {
        *magnitude = x.abs();
    }
    let mut largest = [0.0f32; LANES];
    for part in parts(&magnitude) {
        for i in 0..LANES {
            largest[i] = if part[i] > largest[i] {
                part[i]
            } else {
                largest[i]
            };
        }
    }
    let largest = most(largest);
    if largest <= 0.0 || !largest.is_finite() {
        return BlockMxfp4 { e: 0, qs: [0; 16] };
    }
    // 12 is the largest doubled level: the least power of two at which nothing is cut off. Blocks
    // that are exactly in the format are exact there.
    let bits = (largest / 12.0).to_bits();
    let middle = (bits >> 23) + 1 + u32::from(bits & 0x7f_ffff != 0);
    let mut best = (f32::INFINITY, 0);
    for step in [2, 1] {
        let s = (middle + step).saturating_sub(2).clamp(1, 254);
        let scale = power(s);
        let inverse = 1.0 / scale;
        let mut error = [0.0f32; LANES];
        for (x, w) in parts(&magnitude).zip(parts(w)) {
            for i in 0..LANES {
                let r = x[i] - scale * e2m1_nearest(x[i] * inverse);
                error[i] += w[i] * r * r;
            }
        }
        let error = total(error);
        if error < best.0 {
            best = (error, s);
        }
    }
    let inverse = 1.0 / power(best.1);
    let mut codes = [0u8; 32];
    for (i, code) in codes.iter_mut().enumerate() {
        let level = e2m1_nearest(magnitude[i] * inverse);
        // 6, 8 and 12 are codes 5, 6 and 7: 5.4, 5.9 and 6.9, rounded.
        let folded = if level > 4.0 {
            3.9 + level * 0.25
        } else {
            level
        };
        let sign = if x[i] < 0.0 && level > 0.0 { 8.0 } else { 0.0 };
        *code = byte(folded + sign);
    }
    BlockMxfp4 {
        e: best.1 as u8,
        qs: halves(|i| codes[i]),
    }
}
