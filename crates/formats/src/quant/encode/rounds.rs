//! What the searches of grids share: groups of a block whose scales are `d` times an odd number,
//! and whose codes a search finds for any scale.

use super::fit::{Half, fit_multiples, nearest_within};

/// Times that a group's scale is refitted to the rows of the best so far.
const REFITS: usize = 1;
/// Times that the block's scale is refitted to the codes.
const ROUNDS: usize = 2;

/// A group at one scale.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    /// `sum w (x - scale y)^2`.
    pub error: f32,
    /// `sum w x y` and `sum w y^2`, `y` before the scale.
    pub along: f32,
    pub square: f32,
}

/// How the codes of a group are found.
pub(super) trait Search {
    /// The codes of a group.
    type Codes: Copy + Default;

    /// The largest magnitude of group `g`, and its weighted sum of squares.
    fn size(&self, g: usize) -> (f32, f32);

    /// The codes of group `g` with the least error at a scale.
    fn search(&self, g: usize, scale: f32) -> (Found, Self::Codes);
}

/// The codes of a block of `G` groups.
pub(super) struct Chosen<C, const G: usize> {
    pub d: Half,
    /// The scale of group `g` is `d * (2 s[g] + 1)`.
    pub s: [u8; G],
    pub codes: [C; G],
}

/// Chooses the codes of a block. Each group is fitted by itself, beginning at its largest magnitude
/// times each of `starts`. `top` is the largest `s`; `unit` is what 1 stands for in the search at
/// `d = 1` and `s = 0`.
#[inline(always)]
pub(super) fn choose<S: Search, const G: usize, const STARTS: usize>(
    search: &S,
    starts: [f32; STARTS],
    top: f32,
    unit: f32,
) -> Chosen<S::Codes, G> {
    let (mut scales, mut weights) = ([0.0; G], [0.0; G]);
    for g in 0..G {
        let (largest, sum_xx) = search.size(g);
        if largest <= 0.0 {
            continue;
        }
        let mut least = f32::INFINITY;
        for i in 0..STARTS + REFITS {
            let scale = match starts.get(i) {
                Some(start) => largest * start,
                None => scales[g],
            };
            if scale <= 0.0 {
                break;
            }
            let (found, _) = search.search(g, scale);
            // The error where the scale fits the rows that were found.
            let fitted = found.along / found.square;
            let error = sum_xx - found.along * fitted;
            if fitted > 0.0 && error < least {
                least = error;
                (scales[g], weights[g]) = (fitted, found.square);
            }
        }
    }
    let odd = |q: f32| 2.0 * nearest_within((q - 1.0) / 2.0, 0.0, top) + 1.0;
    let largest = scales.iter().copied().fold(0.0, f32::max);
    let whole = 2.0 * top + 1.0;
    let block_starts = (0..24).map(|i| largest / (whole * (1.07 - 0.017 * i as f32)));
    let mut d = fit_multiples(&scales, &weights, block_starts, odd);
    let mut best: Option<(f32, Chosen<S::Codes, G>)> = None;
    for _ in 0..ROUNDS {
        let half = Half::of(d / unit);
        let d_now = half.value() * unit;
        let mut chosen = Chosen {
            d: half,
            s: [0; G],
            codes: [S::Codes::default(); G],
        };
        if d_now <= 0.0 {
            // Nothing but zeros, or too little for a half.
            return chosen;
        }
        let (mut error, mut along, mut square) = (0.0, 0.0, 0.0);
        for g in 0..G {
            // First the codes around, then the same code at the refitted scale.
            let (middle, around) = match &best {
                Some((_, best)) => (f32::from(best.s[g]), 0.0),
                None => ((odd(scales[g] / d_now) - 1.0) / 2.0, 1.0),
            };
            let mut least: Option<(Found, f32)> = None;
            for s in [middle, middle - around, middle + around] {
                if least.is_some() && s == middle {
                    continue;
                }
                if !(0.0..=top).contains(&s) {
                    continue;
                }
                let (found, codes) = search.search(g, d_now * (2.0 * s + 1.0));
                if least.is_none_or(|(least, _)| found.error < least.error) {
                    (chosen.codes[g], chosen.s[g]) = (codes, s as u8);
                    least = Some((found, 2.0 * s + 1.0));
                }
            }
            if let Some((found, c)) = least {
                error += found.error;
                along += c * found.along;
                square += c * c * found.square;
            }
        }
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, chosen));
        }
        if along > 0.0 && square > 0.0 {
            d = along / square;
        }
    }
    match best {
        Some((_, chosen)) => chosen,
        None => unreachable!("there is a first round"),
    }
}
