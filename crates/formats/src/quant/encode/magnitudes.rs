//! `y = scale * G[index] * sign` with a grid of magnitudes: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.
//!
//! A group of `L` elements shares a scale `d * (2 s + 1)`, `s` from 0 to 15; each row of the grid
//! covers `N` of them.

use zerocopy::little_endian::{U16, U32};

use super::fit::{Half, fit_multiples, nearest_within};
use super::neighbours::{self, NEAR, Neighbours};
use crate::quant::block::{BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs};

/// Times that the block's scale is refitted to the codes.
const ROUNDS: usize = 2;
/// Starting scales of a group.
const STARTS: usize = 9;

/// Codes of a block with `G` groups; `index` has one for each row of the grid.
struct Codes<const G: usize> {
    d: Half,
    s: [u8; G],
    index: [u16; 64],
    /// For each 8 elements, a bit for each that is negative.
    signs: [u8; 32],
}

/// A group at one scale.
struct Found {
    error: f32,
    /// `sum w x y` and `sum w y^2`, `y` before the scale.
    along: f32,
    square: f32,
}

/// The nearest rows for a group at a scale.
#[inline(always)]
fn search<const N: usize>(
    grid: &Neighbours<N, NEAR>,
    x: &[f32],
    w: &[f32],
    scale: f32,
    index: &mut [u16],
) -> Found {
    let inverse = 1.0 / scale;
    let mut found = Found {
        error: 0.0,
        along: 0.0,
        square: 0.0,
    };
    let parts = x.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0);
    for ((x, w), index) in parts.zip(index) {
        let (i, distance) = grid.find(&x.map(|x| x * inverse), w);
        *index = i as u16;
        found.error += distance;
        let row = grid.row(i);
        for j in 0..N {
            found.along += w[j] * x[j] * row[j];
            found.square += w[j] * row[j] * row[j];
        }
    }
    found.error *= scale * scale;
    found
}

/// Codes of a block with groups of `L` elements; `unit` is what a grid value of 1 stands for at
/// `d = 1` and `2 s + 1 = 1`. With `even` signs each 8 elements have an even number of them.
#[inline(always)]
fn encode<const G: usize, const L: usize, const N: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    grid: &Neighbours<N, NEAR>,
    top: f32,
    unit: f32,
    even: bool,
) -> Codes<G> {
    let per_group = L / N;
    let mut signs = [0u8; 32];
    let mut t = x.map(f32::abs);
    for (e, x) in x.iter().enumerate() {
        if *x < 0.0 {
            signs[e / 8] |= 1 << (e % 8);
        }
    }
    if even {
        for (g, signs) in signs.iter_mut().enumerate() {
            if signs.count_ones() % 2 == 1 {
                // A wrong sign costs 4 w |x| times the magnitude in its place.
                let cost = |j: &usize| w[8 * g + j] * t[8 * g + j];
                let cheapest = (0..8).min_by(|a, b| cost(a).total_cmp(&cost(b)));
                let j = cheapest.unwrap_or(0);
                *signs ^= 1 << j;
                t[8 * g + j] = -t[8 * g + j];
            }
        }
    }
    let mut scales = [0.0; G];
    let mut weights = [0.0; G];
    let mut scratch = [0u16; 64];
    for g in 0..G {
        let (x, w) = (&t[L * g..L * (g + 1)], &w[L * g..L * (g + 1)]);
        let largest = x.iter().copied().fold(0.0, f32::max);
        let mut least = f32::INFINITY;
        if largest <= 0.0 {
            continue;
        }
        for i in 0..STARTS {
            let mut scale = largest / top * (0.52 + 0.09 * i as f32);
            for _ in 0..2 {
                let found = search(grid, x, w, scale, &mut scratch[..per_group]);
                if found.along <= 0.0 || found.square <= 0.0 {
                    break;
                }
                // The error where the scale fits the rows that were found.
                let sum_xx: f32 = x.iter().zip(w).map(|(x, w)| w * x * x).sum();
                let error = sum_xx - found.along * found.along / found.square;
                scale = found.along / found.square;
                if error < least {
                    least = error;
                    (scales[g], weights[g]) = (scale, found.square);
                }
                // Most starting points lead to where another has been.
                if error > 1.1 * least {
                    break;
                }
            }
        }
    }
    let odd = |q: f32| 2.0 * nearest_within((q - 1.0) / 2.0, 0.0, 15.0) + 1.0;
    let largest = scales.iter().copied().fold(0.0, f32::max);
    let starts = (0..24).map(|i| largest / (33.0 - 0.5 * i as f32));
    let mut d = fit_multiples(&scales, &weights, starts, odd);
    let mut best: Option<(f32, Codes<G>)> = None;
    let mut around: Option<[u8; G]> = None;
    for _ in 0..ROUNDS {
        let half = Half::of(d / unit);
        let d_now = half.value() * unit;
        let mut codes = Codes {
            d: half,
            s: [0; G],
            index: [0; 64],
            signs,
        };
        if d_now <= 0.0 {
            // Nothing but zeros, or too little for a half.
            return codes;
        }
        let (mut error, mut along, mut square) = (0.0, 0.0, 0.0);
        for g in 0..G {
            let (x, w) = (&t[L * g..L * (g + 1)], &w[L * g..L * (g + 1)]);
            let middle = match around {
                Some(s) => f32::from(s[g]),
                None => (odd(scales[g] / d_now) - 1.0) / 2.0,
            };
            let mut least: Option<(Found, f32)> = None;
            for s in [middle, middle - 1.0, middle + 1.0] {
                if !(0.0..=15.0).contains(&s) {
                    continue;
                }
                let scale = d_now * (2.0 * s + 1.0);
                let found = search(grid, x, w, scale, &mut scratch[..per_group]);
                if least.as_ref().is_none_or(|(l, _)| found.error < l.error) {
                    codes.index[per_group * g..per_group * (g + 1)]
                        .copy_from_slice(&scratch[..per_group]);
                    codes.s[g] = s as u8;
                    least = Some((found, 2.0 * s + 1.0));
                }
            }
            if let Some((found, c)) = least {
                error += found.error;
                along += c * found.along;
                square += c * c * found.square;
            }
        }
        around = Some(codes.s);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, codes));
        }
        if along > 0.0 && square > 0.0 {
            d = along / square;
        }
    }
    match best {
        Some((_, codes)) => codes,
        None => unreachable!("there is a first round"),
    }
}

/// Four 7-bit sign codes, and `s` above them.
fn signs_and_scale(signs: &[u8], s: u8) -> U32 {
    let codes = signs.iter().enumerate();
    let codes = codes.fold(0, |word, (l, signs)| {
        word | (u32::from(signs & 127) << (7 * l))
    });
    U32::new(codes | (u32::from(s) << 28))
}

#[inline(always)]
pub(super) fn iq2_xxs(x: &[f32; 256], w: &[f32; 256]) -> BlockIq2Xxs {
    let codes = encode::<8, 32, 8>(x, w, neighbours::iq2_xxs(), 43.0, 0.125, true);
    let group = |i: usize| {
        let index: [u8; 4] = std::array::from_fn(|l| codes.index[4 * i + l] as u8);
        let word = signs_and_scale(&codes.signs[4 * i..4 * i + 4], codes.s[i]);
        [U32::new(u32::from_le_bytes(index)), word]
    };
    BlockIq2Xxs {
        d: codes.d.bits(),
        groups: std::array::from_fn(group),
    }
}

/// Nibbles of 16 scales.
fn nibbles(s: &[u8; 16]) -> [u8; 8] {
    std::array::from_fn(|i| s[2 * i] | (s[2 * i + 1] << 4))
}

#[inline(always)]
pub(super) fn iq2_xs(x: &[f32; 256], w: &[f32; 256]) -> BlockIq2Xs {
    let codes = encode::<16, 16, 8>(x, w, neighbours::iq2_xs(), 43.0, 0.125, true);
    let code = |g: usize| codes.index[g] | (u16::from(codes.signs[g] & 127) << 9);
    BlockIq2Xs {
        d: codes.d.bits(),
        qs: std::array::from_fn(|g| U16::new(code(g))),
        scales: nibbles(&codes.s),
    }
}

#[inline(always)]
pub(super) fn iq2_s(x: &[f32; 256], w: &[f32; 256]) -> BlockIq2S {
    let codes = encode::<16, 16, 8>(x, w, neighbours::iq2_s(), 43.0, 0.125, false);
    let mut qh = [0; 8];
    for g in 0..32 {
        qh[g / 4] |= ((codes.index[g] >> 8) as u8) << (2 * (g % 4));
    }
    BlockIq2S {
        d: codes.d.bits(),
        qs: std::array::from_fn(|g| codes.index[g] as u8),
        signs: codes.signs,
        qh,
        scales: nibbles(&codes.s),
    }
}

#[inline(always)]
pub(super) fn iq3_xxs(x: &[f32; 256], w: &[f32; 256]) -> BlockIq3Xxs {
    let codes = encode::<8, 32, 4>(x, w, neighbours::iq3_xxs(), 62.0, 0.25, true);
    let word = |i: usize| signs_and_scale(&codes.signs[4 * i..4 * i + 4], codes.s[i]);
    BlockIq3Xxs {
        d: codes.d.bits(),
        qs: std::array::from_fn(|q| codes.index[q] as u8),
        signs_scale: std::array::from_fn(word),
    }
}

#[inline(always)]
pub(super) fn iq3_s(x: &[f32; 256], w: &[f32; 256]) -> BlockIq3S {
    let codes = encode::<8, 32, 4>(x, w, neighbours::iq3_s(), 15.0, 1.0, false);
    let mut qh = [0; 8];
    for q in 0..64 {
        qh[q / 8] |= ((codes.index[q] >> 8) as u8) << (q % 8);
    }
    BlockIq3S {
        d: codes.d.bits(),
        qs: std::array::from_fn(|q| codes.index[q] as u8),
        qh,
        signs: codes.signs,
        scales: std::array::from_fn(|i| codes.s[2 * i] | (codes.s[2 * i + 1] << 4)),
    }
}
