//! `y = scale * (G1[index] + delta)` with values -1, 0 and 1 and `delta` an eighth up or down:
//! IQ1_S, IQ1_M.
//!
//! A group of `L` elements shares a scale `d * (2 s + 1)`, `s` from 0 to 7; `delta` is one for each
//! `D` elements.

use zerocopy::little_endian::U16;

use super::fit::{Half, fit_multiples, nearest_within};
use super::neighbours;
use crate::quant::block::{BlockIq1M, BlockIq1S};

/// Times that the block's scale is refitted to the codes.
const ROUNDS: usize = 2;
/// Starting scales of a group.
const STARTS: usize = 7;
const DELTA: f32 = 0.125;

struct Codes<const G: usize> {
    d: Half,
    s: [u8; G],
    index: [u16; 32],
    /// For each 8 elements whether `delta` is negative.
    down: [bool; 32],
}

#[derive(Clone, Copy, Default)]
struct Found {
    error: f32,
    /// `sum w x y` and `sum w y^2`, `y` before the scale.
    along: f32,
    square: f32,
}

/// The nearest rows for `D` elements at a scale, with the better `delta`.
#[inline(always)]
fn search_part(x: &[f32], w: &[f32], scale: f32, index: &mut [u16], down: &mut [bool]) -> Found {
    let grid = neighbours::iq1();
    let inverse = 1.0 / scale;
    let mut best: Option<Found> = None;
    for is_down in [false, true] {
        let delta = if is_down { -DELTA } else { DELTA };
        let mut found = Found::default();
        let mut rows = [0u16; 4];
        let parts = x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0);
        for (k, (x, w)) in parts.enumerate() {
            let (i, distance) = grid.find(&x.map(|x| x * inverse - delta), w);
            rows[k] = i as u16;
            found.error += distance;
            for (j, v) in grid.row(i).iter().enumerate() {
                let y = v + delta;
                found.along += w[j] * x[j] * y;
                found.square += w[j] * y * y;
            }
        }
        found.error *= scale * scale;
        if best.is_none_or(|best| found.error < best.error) {
            index.copy_from_slice(&rows[..index.len()]);
            down.fill(is_down);
            best = Some(found);
        }
    }
    best.unwrap_or_default()
}

/// The same for a whole group.
#[inline(always)]
fn search<const D: usize>(
    x: &[f32],
    w: &[f32],
    scale: f32,
    index: &mut [u16],
    down: &mut [bool],
) -> Found {
    let mut found = Found::default();
    for k in 0..x.len() / D {
        let (e, r) = (D * k..D * (k + 1), D / 8 * k..D / 8 * (k + 1));
        let part = search_part(
            &x[e.clone()],
            &w[e],
            scale,
            &mut index[r.clone()],
            &mut down[r],
        );
        found.error += part.error;
        found.along += part.along;
        found.square += part.square;
    }
    found
}

#[inline(always)]
fn encode<const G: usize, const L: usize, const D: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
) -> Codes<G> {
    let rows = L / 8;
    let mut scales = [0.0; G];
    let mut weights = [0.0; G];
    let (mut index, mut down) = ([0u16; 32], [false; 32]);
    for g in 0..G {
        let (x, w) = (&x[L * g..L * (g + 1)], &w[L * g..L * (g + 1)]);
        let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        if largest == 0.0 {
            continue;
        }
        let sum_xx: f32 = x.iter().zip(w).map(|(x, w)| w * x * x).sum();
        let mut least = f32::INFINITY;
        for i in 0..STARTS {
            let mut scale = largest * (0.18 + 0.11 * i as f32);
            for _ in 0..2 {
                let found = search::<D>(x, w, scale, &mut index[..rows], &mut down[..rows]);
                if found.along <= 0.0 || found.square <= 0.0 {
                    break;
                }
                let error = sum_xx - found.along * found.along / found.square;
                scale = found.along / found.square;
                if error < least {
                    least = error;
                    (scales[g], weights[g]) = (scale, found.square);
                }
                if error > 1.1 * least {
                    break;
                }
            }
        }
    }
    let odd = |q: f32| 2.0 * nearest_within((q - 1.0) / 2.0, 0.0, 7.0) + 1.0;
    let largest = scales.iter().copied().fold(0.0, f32::max);
    let starts = (0..24).map(|i| largest / (16.5 - 0.4 * i as f32));
    let mut d = fit_multiples(&scales, &weights, starts, odd);
    let mut best: Option<(f32, Codes<G>)> = None;
    let mut around: Option<[u8; G]> = None;
    for _ in 0..ROUNDS {
        let half = Half::of(d);
        let d_now = half.value();
        let mut codes = Codes {
            d: half,
            s: [0; G],
            index: [0; 32],
            down: [false; 32],
        };
        if d_now <= 0.0 {
            return codes;
        }
        let (mut error, mut along, mut square) = (0.0, 0.0, 0.0);
        for g in 0..G {
            let (x, w) = (&x[L * g..L * (g + 1)], &w[L * g..L * (g + 1)]);
            let middle = match around {
                Some(s) => f32::from(s[g]),
                None => (odd(scales[g] / d_now) - 1.0) / 2.0,
            };
            let mut least: Option<(Found, f32)> = None;
            for s in [middle, middle - 1.0, middle + 1.0] {
                if !(0.0..=7.0).contains(&s) {
                    continue;
                }
                let scale = d_now * (2.0 * s + 1.0);
                let found = search::<D>(x, w, scale, &mut index[..rows], &mut down[..rows]);
                if least.is_none_or(|(l, _)| found.error < l.error) {
                    let place = rows * g..rows * (g + 1);
                    codes.index[place.clone()].copy_from_slice(&index[..rows]);
                    codes.down[place].copy_from_slice(&down[..rows]);
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

#[inline(always)]
pub(super) fn iq1_s(x: &[f32; 256], w: &[f32; 256]) -> BlockIq1S {
    let codes = encode::<8, 32, 32>(x, w);
    let high = |i: usize| {
        let mut h = u16::from(codes.s[i]) << 12 | u16::from(codes.down[4 * i]) << 15;
        for l in 0..4 {
            h |= (codes.index[4 * i + l] >> 8) << (3 * l);
        }
        U16::new(h)
    };
    BlockIq1S {
        d: codes.d.bits(),
        qs: std::array::from_fn(|g| codes.index[g] as u8),
        qh: std::array::from_fn(high),
    }
}

#[inline(always)]
pub(super) fn iq1_m(x: &[f32; 256], w: &[f32; 256]) -> BlockIq1M {
    let codes = encode::<16, 16, 8>(x, w);
    let high = |g: usize| (codes.index[g] >> 8) as u8 | (u8::from(codes.down[g]) << 3);
    let d = codes.d.bits().get();
    let word = |i: usize| {
        let mut word = (d >> (4 * i) & 15) << 12;
        for k in 0..4 {
            word |= u16::from(codes.s[4 * i + k]) << (3 * k);
        }
        U16::new(word)
    };
    BlockIq1M {
        qs: std::array::from_fn(|g| codes.index[g] as u8),
        qh: std::array::from_fn(|i| high(2 * i) | (high(2 * i + 1) << 4)),
        scales: std::array::from_fn(word),
    }
}
