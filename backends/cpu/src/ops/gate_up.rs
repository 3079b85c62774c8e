use ds4_model::{GateUp, RowsImage};

use super::set_real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::kernels::RowPair;
use crate::path::Cpu;
use crate::pool::Spread;
use crate::products::{BATCH_COLUMNS, BATCH_ROWS, Formed, WeightRows, Worker};
use crate::simd::{LANES, Simd, SimdExt, dispatch};
use crate::weight::Weight;

pub(crate) fn gate_up(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    inputs: &GateUp<'_, Buffer, Weight>,
    hidden: &mut Buffer,
) {
    let GateUp { gate, up, clamp, x } = *inputs;
    set_real(rows, &mut cpu.real);
    let forms = cpu.activations.form(
        cpu.cpu,
        &mut cpu.pool,
        [gate.kernel(), up.kernel()].into_iter(),
        x.first_rows(rows.len()),
        x.width(),
        |row| rows.slot(row).is_some(),
    );
    let (n_out, width) = (gate.n_out(), hidden.width());
    let (path, real) = (cpu.cpu, &cpu.real);
    let hidden = Spread::new(hidden.floats_mut());
    let n_tasks = n_out.div_ceil(BATCH_COLUMNS);
    cpu.pool
        .run_with(&mut cpu.workers, n_tasks, |task, worker| {
            let first = task * BATCH_COLUMNS;
            let gate = (
                gate.rows(0).part(first, BATCH_COLUMNS),
                forms.of(gate.kernel()),
            );
            let up = (up.rows(0).part(first, BATCH_COLUMNS), forms.of(up.kernel()));
            for batch in real.chunks(BATCH_ROWS) {
                let rows = || batch.iter().map(|pair| pair.from);
                gate_up_batch(path, worker, gate, up, rows(), |i, gate, up| {
                    let at = batch[i].from as usize * width + first;
                    // SAFETY: tasks own different columns.
                    let hidden = unsafe { hidden.slice(at, gate.len()) };
                    swiglu(path, gate, up, clamp, 1.0, hidden);
                });
            }
        });
}

/// Multiplies up to [`BATCH_ROWS`] activation rows with up to [`BATCH_COLUMNS`] rows of both
/// matrices and hands out the products: `body(i, gate, up)` for the `i`-th row.
pub(crate) fn gate_up_batch(
    cpu: Cpu,
    worker: &mut Worker,
    gate: (WeightRows<'_>, Formed<'_>),
    up: (WeightRows<'_>, Formed<'_>),
    rows: impl Iterator<Item = u32>,
    mut body: impl FnMut(usize, &[f32], &[f32]),
) {
    let n = gate.0.len();
    worker.pairs.clear();
    let pairs = rows.zip(0..).map(|(from, to)| RowPair { from, to });
    worker.pairs.extend(pairs);
    let (gates, ups) = worker.batch.split_at_mut(BATCH_ROWS * BATCH_COLUMNS);
    assert!(n <= BATCH_COLUMNS && up.0.len() == n && worker.pairs.len() <= BATCH_ROWS);
    for ((weights, acts), out) in [(gate, &mut *gates), (up, &mut *ups)] {
        let pairs = &worker.pairs;
        // SAFETY: the forms are of this path, and the batch has room for these rows and columns.
        unsafe { weights.multiply(cpu, acts, pairs, out.as_mut_ptr(), n, &mut worker.scratch) };
    }
    for i in 0..worker.pairs.len() {
        body(i, &gates[i * n..][..n], &ups[i * n..][..n]);
    }
}

/// `out = weight * silu(min(gate, clamp)) * clamp(up, ±clamp)`.
pub(crate) fn swiglu(cpu: Cpu, gate: &[f32], up: &[f32], clamp: f32, weight: f32, out: &mut [f32]) {
    #[inline(always)]
    fn body<S: Simd>(s: S, gate: &[f32], up: &[f32], clamp: f32, weight: f32, out: &mut [f32]) {
        let (one, limit, weight) = (s.splat(1.0), s.splat(clamp), s.splat(weight));
        let chunks = gate.chunks(LANES).zip(up.chunks(LANES));
        for ((gate, up), out) in chunks.zip(out.chunks_mut(LANES)) {
            let g = s.min(s.load_part(gate), limit);
            let u = s.max(s.min(s.load_part(up), limit), s.splat(-clamp));
            let silu = s.div(g, s.add(one, s.exp(s.sub(s.zero(), g))));
            s.store_part(s.mul(weight, s.mul(silu, u)), out);
        }
    }
    assert!(gate.len() == out.len() && up.len() == out.len());
    dispatch!(cpu, body(gate: &[f32], up: &[f32], clamp: f32, weight: f32, out: &mut [f32]));
}
