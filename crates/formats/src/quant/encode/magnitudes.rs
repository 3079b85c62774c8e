//! `y = scale * G[index] * sign` with a grid of magnitudes: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.
//!
//! A group of `L` elements shares a scale `d * (2 s + 1)`, `s` from 0 to 15; each row of the grid
//! covers `N` of them.

use zerocopy::little_endian::{U16, U32};

use super::fit::{Half, most, total};
use super::neighbours::{self, Neighbours};
use super::rounds::{Chosen, Found, Search, choose};
use crate::quant::block::{BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs};

/// Rows of the grid in a group: 2 for 16 elements of rows of 8, 4 for 32, 8 for 32 of rows of 4.
const MAX_ROWS: usize = 8;
/// Starting scales of a group, in parts of that at which the largest magnitude is the largest of
/// the grid.
const STARTS: [f32; 9] = [0.52, 0.61, 0.70, 0.79, 0.88, 0.97, 1.06, 1.15, 1.24];

/// Codes of a block with `G` groups; `index` has one for each row of the grid.
struct Codes<const G: usize> {
    d: Half,
    s: [u8; G],
    index: [u16; 64],
    /// For each 8 elements, a bit for each that is negative.
    signs: [u8; 32],
}

/// A block's magnitudes, negative where the sign could not be said, and their weights.
struct Magnitudes<'a, const L: usize, const N: usize, const M: usize> {
    t: [f32; 256],
    w: &'a [f32; 256],
    grid: &'static Neighbours<N, M>,
}

impl<const L: usize, const N: usize, const M: usize> Search for Magnitudes<'_, L, N, M> {
    type Codes = [u16; MAX_ROWS];

    #[inline(always)]
    fn size(&self, g: usize) -> (f32, f32) {
        let (mut largest, mut sum_xx) = ([0.0f32; 8], [0.0f32; 8]);
        let (t, w) = (&self.t[L * g..L * (g + 1)], &self.w[L * g..L * (g + 1)]);
        for (t, w) in t.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
            for j in 0..8 {
                largest[j] = if t[j] > largest[j] { t[j] } else { largest[j] };
                sum_xx[j] += w[j] * t[j] * t[j];
            }
        }
        (most(largest), total(sum_xx))
    }

    #[inline(always)]
    fn search(&self, g: usize, scale: f32) -> (Found, [u16; MAX_ROWS]) {
        let inverse = 1.0 / scale;
        let mut index = [0; MAX_ROWS];
        let (mut error, mut along, mut square) = ([0.0f32; N], [0.0f32; N], [0.0f32; N]);
        let (t, w) = (&self.t[L * g..L * (g + 1)], &self.w[L * g..L * (g + 1)]);
        let parts = t.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0);
        for ((t, w), index) in parts.zip(&mut index) {
            let mut u = *t;
            for u in &mut u {
                *u *= inverse;
            }
            *index = self.grid.find(&u, w);
            let row = self.grid.row(*index);
            for j in 0..N {
                let r = u[j] - row[j];
                let wy = w[j] * row[j];
                error[j] += w[j] * r * r;
                along[j] += wy * t[j];
                square[j] += wy * row[j];
            }
        }
        let found = Found {
            error: sum(error) * scale * scale,
            along: sum(along),
            square: sum(square),
        };
        (found, index)
    }
}

/// The sum of 4 or 8 parts.
#[inline(always)]
fn sum<const N: usize>(mut parts: [f32; N]) -> f32 {
    let mut n = N;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            parts[i] += parts[i + n];
        }
    }
    parts[0]
}

/// Codes of a block with groups of `L` elements; `unit` is what a grid value of 1 stands for at
/// `d = 1` and `2 s + 1 = 1`. With `even` signs each 8 elements have an even number of them.
#[inline(always)]
fn encode<const G: usize, const L: usize, const N: usize, const M: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    grid: &'static Neighbours<N, M>,
    top: f32,
    unit: f32,
    even: bool,
) -> Codes<G> {
    let mut signs = [0u8; 32];
    let mut t = *x;
    for t in &mut t {
        *t = t.abs();
    }
    for (e, x) in x.iter().enumerate() {
        signs[e / 8] |= u8::from(*x < 0.0) << (e % 8);
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
    let search = Magnitudes::<L, N, M> { t, w, grid };
    let chosen: Chosen<_, G> = choose(&search, STARTS.map(|start| start / top), 15.0, unit);
    let mut codes = Codes {
        d: chosen.d,
        s: chosen.s,
        index: [0; 64],
        signs,
    };
    let groups = codes.index.chunks_exact_mut(L / N);
    for (out, index) in groups.zip(&chosen.codes) {
        out.copy_from_slice(&index[..L / N]);
    }
    codes
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
    let codes = encode::<8, 32, 8, 2>(x, w, neighbours::iq2_xxs(), 43.0, 0.125, true);
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
    let codes = encode::<16, 16, 8, 2>(x, w, neighbours::iq2_xs(), 43.0, 0.125, true);
    let code = |g: usize| codes.index[g] | (u16::from(codes.signs[g] & 127) << 9);
    BlockIq2Xs {
        d: codes.d.bits(),
        qs: std::array::from_fn(|g| U16::new(code(g))),
        scales: nibbles(&codes.s),
    }
}

#[inline(always)]
pub(super) fn iq2_s(x: &[f32; 256], w: &[f32; 256]) -> BlockIq2S {
    let codes = encode::<16, 16, 8, 2>(x, w, neighbours::iq2_s(), 43.0, 0.125, false);
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
    let codes = encode::<8, 32, 4, 7>(x, w, neighbours::iq3_xxs(), 62.0, 0.25, true);
    let word = |i: usize| signs_and_scale(&codes.signs[4 * i..4 * i + 4], codes.s[i]);
    BlockIq3Xxs {
        d: codes.d.bits(),
        qs: std::array::from_fn(|q| codes.index[q] as u8),
        signs_scale: std::array::from_fn(word),
    }
}

#[inline(always)]
pub(super) fn iq3_s(x: &[f32; 256], w: &[f32; 256]) -> BlockIq3S {
    let codes = encode::<8, 32, 4, 7>(x, w, neighbours::iq3_s(), 15.0, 1.0, false);
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
