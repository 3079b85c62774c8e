//! Filters and the draw: over a whole row of adjusted logits, and over the largest of
//! them when these are all that is known.
//!
//! Both keep the same tokens and walk them in the same order: the [`N_CANDIDATES`]
//! largest, largest first, then the others by id.

use ds4_model::N_CANDIDATES;

use super::SamplingOptions;

/// Tempered weights below this share of the largest are taken for zero: 129,280 of them
/// are less than 1e-12 of a sum.
const LEAST_LOG: f64 = -40.0;

/// Puts the `k` ids with the largest values first, largest first, lowest id first of equal
/// ones. The others follow in any order.
fn put_largest_first(ids: &mut [u32], k: usize, value: impl Fn(u32) -> f32) {
    let order = |a: &u32, b: &u32| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    let k = k.min(ids.len());
    if 0 < k && k < ids.len() {
        ids.select_nth_unstable_by(k - 1, order);
    }
    ids[..k].sort_unstable_by(order);
}

/// Keeps the `k` ids with the largest values, in the order of [`put_largest_first`].
pub(super) fn keep_largest(ids: &mut Vec<u32>, k: usize, value: impl Fn(u32) -> f32) {
    put_largest_first(ids, k, value);
    ids.truncate(k);
}

/// Least logit that `min_p` keeps.
fn threshold(options: &SamplingOptions, max: f32) -> f32 {
    match options.min_p {
        0.0 => f32::NEG_INFINITY,
        min_p => max + options.temperature * min_p.ln(),
    }
}

/// The tempered weight of a logit, relative to the largest.
fn weight(l: f32, max: f32, temperature: f32) -> f64 {
    let log = f64::from(l - max) / f64::from(temperature);
    if log < LEAST_LOG { 0.0 } else { log.exp() }
}

/// How many of the `weights`, in descending order, reach `top_p` of `total`; `None` when
/// all of them do not.
fn nucleus(weights: impl Iterator<Item = f64>, top_p: f32, total: f64) -> Option<usize> {
    let mut cumulative = 0.0;
    weights
        .enumerate()
        .find(|(_, weight)| {
            cumulative += weight;
            cumulative >= f64::from(top_p) * total
        })
        .map(|(at, _)| at + 1)
}

/// Draws from a row of which at least one logit is above -∞. `ids` is scratch.
pub(super) fn draw(
    logits: &[f32],
    options: &SamplingOptions,
    unit: f64,
    ids: &mut Vec<u32>,
) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let value = |id: u32| logits[id as usize];
    let of = |l: f32| weight(l, max, options.temperature);
    let least = threshold(options, max);
    ids.clear();
    ids.extend((0..logits.len() as u32).filter(|id| value(*id) >= least));
    // The largest stay even where rounding puts the threshold above them.
    if ids.is_empty() {
        ids.extend((0..logits.len() as u32).filter(|id| value(*id) == max));
    }
    if options.top_k > 0 {
        keep_largest(ids, options.top_k, value);
    }
    if options.top_p < 1.0 {
        // `top_p` is a share of what `top_k` keeps, `min_p` not yet applied to it.
        let total: f64 = if options.top_k == 0 {
            logits.iter().map(|l| of(*l)).sum()
        } else {
            let mut all: Vec<u32> = (0..logits.len() as u32).collect();
            keep_largest(&mut all, options.top_k, value);
            all.iter().map(|id| of(value(*id))).sum()
        };
        keep_largest(ids, ids.len(), value);
        if let Some(n) = nucleus(ids.iter().map(|id| of(value(*id))), options.top_p, total) {
            ids.truncate(n);
        }
    }
    let n_first = ids.len().min(N_CANDIDATES);
    put_largest_first(ids, n_first, value);
    ids[n_first..].sort_unstable();
    let total: f64 = ids.iter().map(|id| of(value(*id))).sum();
    let weights = ids.iter().map(|id| (*id, of(value(*id))));
    // Rounding can leave a hair: then it is the likeliest.
    walk(weights, unit * total).unwrap_or(ids[0])
}

/// The token at which the sum of the weights passes `target`.
fn walk(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> Option<u32> {
    let mut left = target;
    for (id, weight) in weights {
        left -= weight;
        if left < 0.0 {
            return Some(id);
        }
    }
    None
}

/// The largest adjusted logits of a row.
pub(super) struct Head {
    /// Ids and logits, largest first, all above `floor`.
    pub(super) tokens: Vec<(u32, f32)>,
    /// No other token has a larger logit.
    pub(super) floor: f32,
    /// Whether there are no other tokens.
    pub(super) complete: bool,
    /// Sum of the tempered weights of all tokens, relative to the first, if known.
    pub(super) total: Option<f64>,
}

impl Head {
    /// Draws, if what is known decides.
    pub(super) fn draw(
        &mut self,
        options: &SamplingOptions,
        unit: impl FnOnce() -> f64,
    ) -> Option<u32> {
        let max = self.tokens.first()?.1;
        let of = |l: f32| weight(l, max, options.temperature);
        let least = threshold(options, max);
        let mut n = self.tokens.partition_point(|(_, l)| *l >= least).max(1);
        let mut decided = self.complete || least > self.floor;
        let weights = |n: usize| self.tokens[..n].iter().map(|(_, l)| of(*l));
        let top_k = match options.top_k {
            0 => None,
            k if k <= self.tokens.len() || self.complete => Some(k.min(self.tokens.len())),
            _ => return None,
        };
        if let Some(k) = top_k {
            n = n.min(k);
            decided = true;
        }
        if options.top_p < 1.0 {
            let total = match top_k {
                Some(k) => weights(k).sum(),
                None if self.complete => weights(self.tokens.len()).sum(),
                None => self.total?,
            };
            match nucleus(weights(n), options.top_p, total) {
                Some(kept) => {
                    n = kept;
                    decided = true;
                }
                None if !decided => return None,
                None => {}
            }
        }
        let kept = |n: usize| self.tokens[..n].iter().map(|(id, l)| (*id, of(*l)));
        if decided {
            let total: f64 = weights(n).sum();
            return Some(walk(kept(n), unit() * total).unwrap_or(self.tokens[0].0));
        }
        // Nothing is cut off: the draw may still fall among the largest.
        let unfiltered = options.min_p == 0.0 && options.top_p >= 1.0;
        match (unfiltered, self.total) {
            (true, Some(total)) => walk(kept(n), unit() * total),
            _ => None,
        }
    }

    /// Gives its memory back.
    pub(super) fn take(self) -> Vec<(u32, f32)> {
        self.tokens
    }
}
