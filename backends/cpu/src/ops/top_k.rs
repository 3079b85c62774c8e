use ds4_model::geometry::CSA_RATIO;
use ds4_model::{RowsImage, ScoreTile};

use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;

pub(crate) fn top_k(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    tile: &ScoreTile,
    scores: &Buffer,
    selected: &mut Buffer,
) {
    let k = selected.width();
    let selected = Spread::new(selected.ids_mut());
    let values = scores.floats();
    cpu.pool.run(tile.rows.len(), |i, _| {
        let r = tile.rows.start + i;
        if rows.slot(r).is_some() {
            let scores = &values[i * tile.stride..][..rows.n_visible(r, CSA_RATIO)];
            // SAFETY: tasks own different rows.
            let out = unsafe { selected.slice(r * k, k) };
            largest_ascending(scores, out);
        }
    });
}

/// Bits of a key that one pass looks at.
const DIGIT_BITS: u32 = 11;
const N_DIGITS: usize = 1 << DIGIT_BITS;

/// A key that orders as [`f32::total_cmp`] does.
#[inline(always)]
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// Writes the indices of the largest values, as many as fit, in ascending order; of equal values the
/// lowest indices. When there are no more values than places, it is all of them.
///
/// A radix selection: three passes find the key of the last value that is taken, digit by digit,
/// and a fourth takes what lies above it, and of its equals the first ones.
pub(crate) fn largest_ascending(values: &[f32], out: &mut [u32]) {
    let k = out.len();
    if values.len() <= k {
        for (i, out) in out[..values.len()].iter_mut().enumerate() {
            *out = i as u32;
        }
        return;
    }
    // The key found so far, in its upper bits, and how many of its equals are still wanted.
    let (mut prefix, mut wanted) = (0u32, k as u32);
    let mut known = 0;
    while known < 32 {
        let bits = DIGIT_BITS.min(32 - known);
        let shift = 32 - known - bits;
        let mut counts = [0u32; N_DIGITS];
        for x in values {
            let key = key(*x);
            if known == 0 || (key >> (32 - known)) == prefix {
                counts[(key >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        let mut digit = (1usize << bits) - 1;
        while counts[digit] < wanted {
            wanted -= counts[digit];
            digit -= 1;
        }
        prefix = (prefix << bits) | digit as u32;
        known += bits;
    }
    let mut n = 0;
    for (i, x) in values.iter().enumerate() {
        let key = key(*x);
        if key > prefix || (key == prefix && wanted > 0) {
            wanted -= u32::from(key == prefix);
            out[n] = i as u32;
            n += 1;
        }
    }
    debug_assert_eq!(n, k);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by sorting.
    fn sorted(values: &[f32], k: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
        order.truncate(k);
        order.sort_unstable();
        order
    }

    #[test]
    fn the_largest_are_those_of_a_stable_sort() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40];
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed
        };
        for n in [1, 2, 5, 100, 513, 5000] {
            for kind in 0..4 {
                let values: Vec<f32> = (0..n)
                    .map(|_| match kind {
                        // Any bits, few values, one value, and special ones.
                        0 => f32::from_bits(random()),
                        1 => (random() % 7) as f32 - 3.0,
                        2 => 0.25,
                        _ => special[random() as usize % special.len()],
                    })
                    .collect();
                for k in [1, 2, 7, 99, 512, n] {
                    let mut out = vec![u32::MAX; k];
                    largest_ascending(&values, &mut out);
                    let expected = sorted(&values, k);
                    assert_eq!(out[..expected.len()], expected, "{k} of {n}, kind {kind}");
                }
            }
        }
    }
}
