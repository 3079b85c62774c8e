use ds4_model::{BackendError, Choice, Geometry, N_CANDIDATES, RowsImage};

use super::top_k::largest_ascending;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::memory::Aligned;
use crate::pool::Spread;
use crate::products::grow;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

/// Logits of one task. Sums are taken part by part, so that they do not depend on the number
/// of threads.
const PART: usize = 8192;

/// What the parts of the rows' logits gave.
#[derive(Debug, Default)]
pub(crate) struct Choosing {
    /// Candidates of a part, `[n_rows, n_parts, N_CANDIDATES]`.
    ids: Aligned<u32>,
    sums: Aligned<f32>,
}

/// Numbers of a part: its largest logit, and the sums of the exponentials of what lies below it,
/// at temperature 1 and at the row's.
const N_SUMS: usize = 3;

impl Choosing {
    /// Takes the memory for `n_rows` rows.
    pub(crate) fn reserve(
        &mut self,
        geometry: &Geometry,
        n_rows: usize,
    ) -> Result<(), BackendError> {
        let n_parts = n_rows.saturating_mul(geometry.n_vocab.div_ceil(PART));
        let what = "candidates";
        grow(&mut self.ids, n_parts.saturating_mul(N_CANDIDATES), what)?;
        grow(&mut self.sums, n_parts.saturating_mul(N_SUMS), what)
    }
}

/// Part by part in parallel, then row by row what the parts gave.
pub(crate) fn choose(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    logits: &Buffer,
    choice: &mut Choice<Buffer>,
) {
    let path = cpu.cpu;
    let n_vocab = logits.width();
    let n_parts = n_vocab.div_ceil(PART);
    let (part_ids, part_sums) = (
        Spread::new(&mut cpu.choosing.ids),
        Spread::new(&mut cpu.choosing.sums),
    );
    cpu.pool.run(rows.len() * n_parts, |task, _| {
        let (r, part) = (task / n_parts, task % n_parts);
        if rows.slot(r).is_none() {
            return;
        }
        let first = part * PART;
        let logits = &logits.row(r)[first..(first + PART).min(n_vocab)];
        // SAFETY: tasks own different parts.
        let (ids, out) = unsafe {
            (
                part_ids.slice(task * N_CANDIDATES, N_CANDIDATES.min(logits.len())),
                part_sums.slice(task * N_SUMS, N_SUMS),
            )
        };
        largest_ascending(logits, ids);
        for id in ids {
            *id += first as u32;
        }
        let scale = rows.inv_temperature[r];
        dispatch!(path, sums(logits: &[f32], scale: f32, out: &mut [f32]));
    });

    let n = choice.ids.width();
    let ids_out = Spread::new(choice.ids.ids_mut());
    let values_out = Spread::new(choice.values.floats_mut());
    let lse_out = Spread::new(choice.lse.floats_mut());
    cpu.pool.run(rows.len(), |r, _| {
        if rows.slot(r).is_none() {
            return;
        }
        let logits = logits.row(r);
        // SAFETY: tasks own different rows, and the parts are complete.
        let (ids, values, lse, part_ids, part_sums) = unsafe {
            (
                ids_out.slice(r * n, n),
                values_out.slice(r * n, n),
                lse_out.slice(r * 2, 2),
                part_ids.slice(r * n_parts * N_CANDIDATES, n_parts * N_CANDIDATES),
                part_sums.view(r * n_parts * N_SUMS, n_parts * N_SUMS),
            )
        };
        let last_part = n_vocab - (n_parts - 1) * PART;
        let n_found = (n_parts - 1) * N_CANDIDATES + N_CANDIDATES.min(last_part);
        let found = &mut part_ids[..n_found];
        // Of equal logits the lowest id first: the order is total, so an unstable sort will do.
        let order = |a: &u32, b: &u32| {
            let (x, y) = (logits[*a as usize], logits[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        if n < found.len() {
            found.select_nth_unstable_by(n - 1, order);
        }
        let found = &mut found[..n];
        found.sort_unstable_by(order);
        for ((id, value), found) in ids.iter_mut().zip(values).zip(found) {
            *id = *found;
            *value = logits[*found as usize];
        }
        for (which, scale) in [1.0, rows.inv_temperature[r]].into_iter().enumerate() {
            let parts = part_sums.chunks_exact(N_SUMS);
            let max = parts.clone().fold(f32::NEG_INFINITY, |m, p| m.max(p[0]));
            let sum: f64 = parts
                .map(|p| f64::from((p[0] - max) * scale).exp() * f64::from(p[1 + which]))
                .sum();
            lse[which] = (f64::from(max) * f64::from(scale) + sum.ln()) as f32;
        }
    });
}

/// The largest value, and `Σ exp(x - max)` and `Σ exp((x - max) * scale)`; the sums are NaN when
/// a value is not finite.
#[inline(always)]
fn sums<S: Simd>(s: S, values: &[f32], scale: f32, out: &mut [f32]) {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut max = s.splat(f32::NEG_INFINITY);
    // A product with zero is zero, or NaN of what is not finite.
    let mut zeros = s.zero();
    for x in chunks {
        let x = s.load(x);
        max = s.max(x, max);
        zeros = s.fma(x, s.zero(), zeros);
    }
    let mut largest = s.largest(max);
    let mut zero = s.sum(zeros);
    for x in rest {
        largest = largest.max(*x);
        zero += x * 0.0;
    }
    let (shift, factor) = (s.splat(largest), s.splat(scale));
    let (mut sum, mut scaled) = (s.zero(), s.zero());
    for x in chunks {
        let x = s.sub(s.load(x), shift);
        sum = s.add(sum, s.exp(x));
        scaled = s.add(scaled, s.exp(s.mul(x, factor)));
    }
    let (mut sum, mut scaled) = (s.sum(sum), s.sum(scaled));
    for x in rest {
        sum += (x - largest).exp();
        scaled += ((x - largest) * scale).exp();
    }
    out.copy_from_slice(&[largest, sum + zero, scaled + zero]);
}
