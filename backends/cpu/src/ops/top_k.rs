use std::ops::Range;

use ds4_model::RowsImage;
use ds4_model::geometry::CSA_RATIO;

use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;

pub(crate) fn top_k(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    range: Range<usize>,
    scores: &Buffer,
    selected: &mut Buffer,
) {
    let k = selected.width();
    let ids = Spread::new(selected.ids_mut());
    cpu.pool
        .run_with(&mut cpu.workers, range.len(), |task, worker| {
            let r = range.start + task;
            if rows.slot(r).is_some() {
                let scores = &scores.row(task)[..rows.n_visible(r, CSA_RATIO)];
                // SAFETY: tasks own different rows.
                let out = unsafe { ids.slice(r * k, k.min(scores.len())) };
                largest_in_order(scores, &mut worker.counts, out);
            }
        });
}

/// Bits that one pass over the values looks at.
const DIGIT_BITS: u32 = 11;
/// Counts of one pass.
pub(crate) const N_DIGITS: usize = 1 << DIGIT_BITS;

/// A number that orders as `f32::total_cmp` does.
fn key(value: f32) -> u32 {
    let bits = value.to_bits();
    let mask = ((bits as i32) >> 31) as u32 | 0x8000_0000;
    bits ^ mask
}

/// The indices of the `out.len()` largest values, ascending; of equal values the lowest indices.
///
/// The smallest of the largest values is found by its digits, highest first: each pass counts the
/// digits of the values that share the digits found so far (a radix selection).
pub(crate) fn largest_in_order(values: &[f32], counts: &mut [u32], out: &mut [u32]) {
    let counts = &mut counts[..N_DIGITS];
    let n = out.len();
    assert!(n <= values.len() && values.len() <= u32::MAX as usize);
    if n == values.len() {
        for (i, out) in out.iter_mut().enumerate() {
            *out = i as u32;
        }
        return;
    }
    if n == 0 {
        return;
    }
    // Of the values that begin with `prefix`, the `rank` largest belong to the result.
    let (mut prefix, mut rank, mut shift) = (0, n as u32, u32::BITS);
    while shift > 0 {
        let bits = DIGIT_BITS.min(shift);
        let above = shift;
        shift -= bits;
        counts.fill(0);
        let mask = (1 << bits) - 1;
        for value in values {
            let key = key(*value);
            if above == u32::BITS || key >> above == prefix {
                counts[(key >> shift & mask) as usize] += 1;
            }
        }
        let mut digit = mask;
        while counts[digit as usize] < rank {
            rank -= counts[digit as usize];
            digit -= 1;
        }
        prefix = prefix << bits | digit;
    }
    let mut chosen = out.iter_mut();
    for (i, value) in values.iter().enumerate() {
        let key = key(*value);
        let is_last = key == prefix && rank > 0;
        if key > prefix || is_last {
            rank -= u32::from(is_last);
            let Some(out) = chosen.next() else {
                unreachable!("as many values as were counted");
            };
            *out = i as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sorted, which is what it must equal.
    fn sorted(values: &[f32], n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        let value = |i: &u32| values[*i as usize];
        order.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.cmp(b)));
        order.truncate(n);
        order.sort_unstable();
        order
    }

    #[test]
    fn the_largest_values_are_those_of_a_stable_sort() {
        let mut seed = 0x1234_5678_9abc_def1u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut counts = vec![7; N_DIGITS];
        for len in [1, 2, 5, 100, 3000] {
            for ties in [1u64, 3, 50, u64::MAX] {
                let mut values: Vec<f32> = (0..len)
                    .map(|_| ((next() >> 20) % ties) as f32 * 1e-3 - 0.02)
                    .collect();
                values[0] = f32::NEG_INFINITY;
                values[len / 2] = -0.0;
                for n in [1, 2, len / 2, len - 1, len] {
                    let n = n.min(len);
                    let mut found = vec![0; n];
                    largest_in_order(&values, &mut counts, &mut found);
                    assert_eq!(found, sorted(&values, n), "{n} of {len}, {ties} values");
                }
            }
        }
    }
}
