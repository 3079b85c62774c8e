//! `y = scale * (G1[index] + delta)` with values -1, 0 and 1 and `delta` an eighth up or down:
//! IQ1_S, IQ1_M.
//!
//! A group of `L` elements shares a scale `d * (2 s + 1)`, `s` from 0 to 7; `delta` is one for each
//! `D` elements.

use zerocopy::little_endian::U16;

use super::fit::{Half, most, total};
use super::neighbours;
use super::rounds::{Chosen, Found, Search, choose};
use crate::quant::block::{BlockIq1M, BlockIq1S};

/// Rows of the grid in a group of 32.
const MAX_ROWS: usize = 4;
/// Starting scales of a group, in parts of its largest magnitude.
const STARTS: [f32; 4] = [0.24, 0.40, 0.56, 0.74];
const DELTA: f32 = 0.125;

struct Codes<const G: usize> {
    d: Half,
    s: [u8; G],
    index: [u16; 32],
    /// For each 8 elements whether `delta` is negative.
    down: [bool; 32],
}

/// The codes of a group: for each 8 elements a row, and whether `delta` is negative.
#[derive(Clone, Copy, Default)]
struct Rows {
    index: [u16; MAX_ROWS],
    down: [bool; MAX_ROWS],
}

/// A block and its weights.
struct Ternary<'a, const L: usize, const D: usize> {
    x: &'a [f32; 256],
    w: &'a [f32; 256],
}

/// Sums in eight parts.
#[derive(Clone, Copy, Default)]
struct Sums {
    error: [f32; 8],
    along: [f32; 8],
    square: [f32; 8],
}

impl<const L: usize, const D: usize> Search for Ternary<'_, L, D> {
    type Codes = Rows;

    #[inline(always)]
    fn size(&self, g: usize) -> (f32, f32) {
        let (mut largest, mut sum_xx) = ([0.0f32; 8], [0.0f32; 8]);
        let (x, w) = (&self.x[L * g..L * (g + 1)], &self.w[L * g..L * (g + 1)]);
        for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
            for j in 0..8 {
                let magnitude = x[j].abs();
                largest[j] = if magnitude > largest[j] {
                    magnitude
                } else {
                    largest[j]
                };
                sum_xx[j] += w[j] * x[j] * x[j];
            }
        }
        (most(largest), total(sum_xx))
    }

    #[inline(always)]
    fn search(&self, g: usize, scale: f32) -> (Found, Rows) {
        let grid = neighbours::iq1();
        let inverse = 1.0 / scale;
        let mut rows = Rows::default();
        let mut sums = Sums::default();
        // Each part with the better of its two deltas.
        for part in 0..L / D {
            let mut best: Option<(f32, Sums)> = None;
            for is_down in [false, true] {
                let delta = if is_down { -DELTA } else { DELTA };
                let mut tried = sums;
                let mut index = [0; MAX_ROWS];
                for k in 0..D / 8 {
                    let at = L * g + D * part + 8 * k;
                    let (x, w) = (&self.x[at..at + 8], &self.w[at..at + 8]);
                    let (Some(x), Some(w)) = (x.first_chunk::<8>(), w.first_chunk::<8>()) else {
                        unreachable!("eight elements")
                    };
                    let mut u = *x;
                    for u in &mut u {
                        *u = *u * inverse - delta;
                    }
                    index[k] = grid.find(&u, w);
                    let row = grid.row(index[k]);
                    for j in 0..8 {
                        let r = u[j] - row[j];
                        let y = row[j] + delta;
                        let wy = w[j] * y;
                        tried.error[j] += w[j] * r * r;
                        tried.along[j] += wy * x[j];
                        tried.square[j] += wy * y;
                    }
                }
                let error = total(tried.error);
                if best.as_ref().is_none_or(|(least, _)| error < *least) {
                    let first = D / 8 * part;
                    rows.index[first..first + D / 8].copy_from_slice(&index[..D / 8]);
                    rows.down[first..first + D / 8].fill(is_down);
                    best = Some((error, tried));
                }
            }
            if let Some((_, better)) = best {
                sums = better;
            }
        }
        let found = Found {
            error: total(sums.error) * scale * scale,
            along: total(sums.along),
            square: total(sums.square),
        };
        (found, rows)
    }
}

#[inline(always)]
fn encode<const G: usize, const L: usize, const D: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
) -> Codes<G> {
    let chosen: Chosen<Rows, G> = choose(&Ternary::<L, D> { x, w }, STARTS, 7.0, 1.0);
    let mut codes = Codes {
        d: chosen.d,
        s: chosen.s,
        index: [0; 32],
        down: [false; 32],
    };
    for (g, rows) in chosen.codes.iter().enumerate() {
        let place = L / 8 * g..L / 8 * (g + 1);
        codes.index[place.clone()].copy_from_slice(&rows.index[..L / 8]);
        codes.down[place].copy_from_slice(&rows.down[..L / 8]);
    }
    codes
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
