//! `y = scale * v` with `v` below and above zero: Q3_K, Q6_K. The 16 groups of 16 are searched side
//! by side.

use super::fit::{
    Half, byte, codes, extreme, fit_multiples, inverses, nearest_within, plus, side_by_side, times,
};
use crate::quant::block::{BlockQ3K, BlockQ6K};

/// Times that the block's scale is refitted to the codes.
const ROUNDS: usize = 2;
/// Times that a group's scale is refitted to the codes of the best so far.
const REFITS: usize = 2;
/// Starting scales on either side, in steps around the whole range.
const SPREAD: i32 = 3;

/// A number for every group.
type Groups = [f32; 16];

/// Codes of a block of 16 groups of 16.
struct Codes {
    d: Half,
    scale: [i8; 16],
    v: [i8; 256],
}

/// The ends of codes from `-top` to `top - 1`, and fifths of a code (of 16) around.
#[inline(always)]
fn ends(top: f32) -> impl Iterator<Item = f32> {
    (-SPREAD..=SPREAD).flat_map(move |i| {
        let off = 0.2 * i as f32 * (top / 8.0).max(1.0);
        [-(top + off), top - 1.0 + off]
    })
}

/// Starting scales for codes from `-top` to `top - 1`: the largest magnitude at either end, and
/// around.
pub(super) fn both_ends(values: &[f32], top: f32) -> impl Iterator<Item = f32> + use<> {
    let largest = extreme(values);
    ends(top).map(move |end| largest / end)
}

/// The scale of each group by itself, and how much the error grows with the square of a change of
/// it.
#[inline(always)]
fn fit_groups(x: &[Groups; 16], w: &[Groups; 16], top: f32) -> (Groups, Groups) {
    let mut largest = [0.0f32; 16];
    for x in x {
        for g in 0..16 {
            if x[g].abs() > largest[g].abs() {
                largest[g] = x[g];
            }
        }
    }
    let mut best = Best::default();
    for end in ends(top) {
        best.take(x, w, top, &times(&largest, 1.0 / end));
    }
    for _ in 0..REFITS {
        let d = best.scale;
        best.take(x, w, top, &d);
    }
    (best.scale, best.weight)
}

/// The best scales so far.
#[derive(Default)]
struct Best {
    scale: Groups,
    weight: Groups,
    /// What the multiples take away from the sum of squares of the values.
    gain: Groups,
}

impl Best {
    /// Tries scales fitted to the codes at `d`.
    #[inline(always)]
    fn take(&mut self, x: &[Groups; 16], w: &[Groups; 16], top: f32, d: &Groups) {
        let inverse = inverses(d);
        let (mut along, mut square) = ([0.0f32; 16], [0.0f32; 16]);
        for (x, w) in x.iter().zip(w) {
            for g in 0..16 {
                let v = nearest_within(x[g] * inverse[g], -top, top - 1.0);
                let wv = w[g] * v;
                along[g] += wv * x[g];
                square[g] += wv * v;
            }
        }
        for g in 0..16 {
            let fitted = along[g] / square[g];
            let gain = along[g] * fitted;
            // Not where the quotient is no number.
            if gain > self.gain[g] {
                self.gain[g] = gain;
                self.scale[g] = fitted;
                self.weight[g] = square[g];
            }
        }
    }
}

#[inline(always)]
fn encode(x: &[f32; 256], w: &[f32; 256], top: f32, code_top: f32) -> Codes {
    let (x, w) = (side_by_side::<16, 16>(x), side_by_side::<16, 16>(w));
    let (scales, weights) = fit_groups(&x, &w, top);
    let code = |q: f32| nearest_within(q, -code_top, code_top - 1.0);
    let mut d = fit_multiples(&scales, &weights, both_ends(&scales, code_top), code);
    let mut best: Option<(f32, Half, Groups)> = None;
    for _ in 0..ROUNDS {
        let half = Half::of(d);
        let d_now = half.value();
        let middle = match best {
            Some((.., chosen)) => chosen,
            None => {
                let [inverse] = inverses(&[d_now]);
                codes(&scales, inverse, -code_top, code_top - 1.0)
            }
        };
        let (mut least, mut chosen) = ([f32::INFINITY; 16], [0.0; 16]);
        for step in [0.0, -1.0, 1.0] {
            let c = plus(&middle, step);
            let scale = times(&c, d_now);
            let inverse = inverses(&scale);
            let mut e = [0.0f32; 16];
            for (x, w) in x.iter().zip(&w) {
                for g in 0..16 {
                    let v = nearest_within(x[g] * inverse[g], -top, top - 1.0);
                    let r = scale[g] * v - x[g];
                    e[g] += w[g] * r * r;
                }
            }
            for g in 0..16 {
                if e[g] < least[g] && c[g] >= -code_top && c[g] < code_top {
                    least[g] = e[g];
                    chosen[g] = c[g];
                }
            }
        }
        let error: f32 = least.iter().sum();
        if best.is_none_or(|(least, ..)| error < least) {
            best = Some((error, half, chosen));
        }
        let inverse = inverses(&times(&chosen, d_now));
        let (mut along, mut square) = ([0.0f32; 16], [0.0f32; 16]);
        for (x, w) in x.iter().zip(&w) {
            for g in 0..16 {
                let y = chosen[g] * nearest_within(x[g] * inverse[g], -top, top - 1.0);
                along[g] += w[g] * x[g] * y;
                square[g] += w[g] * y * y;
            }
        }
        let (along, square) = (along.iter().sum::<f32>(), square.iter().sum::<f32>());
        if square > 0.0 {
            d = along / square;
        }
    }
    let Some((_, half, chosen)) = best else {
        unreachable!("there is a first round")
    };
    let inverse = inverses(&times(&chosen, half.value()));
    let mut found = Codes {
        d: half,
        scale: chosen.map(|c| c as i8),
        v: [0; 256],
    };
    for (i, x) in x.iter().enumerate() {
        for g in 0..16 {
            found.v[16 * g + i] = byte(nearest_within(x[g] * inverse[g], -top, top - 1.0)) as i8;
        }
    }
    found
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
