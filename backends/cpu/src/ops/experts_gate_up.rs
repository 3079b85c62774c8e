use ds4_model::{ExpertsGateUp, RowsImage};

use super::gate_up::{gate_up_batch, swiglu};
use super::set_real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::products::{BATCH_COLUMNS, BATCH_ROWS};
use crate::weight::Weight;

/// Expert by expert, so that the weights of one are unpacked once for all rows that use it.
pub(crate) fn experts_gate_up(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    inputs: &ExpertsGateUp<'_, Buffer, Weight>,
    hidden: &mut Buffer,
) {
    let ExpertsGateUp {
        gate,
        up,
        clamp,
        x,
        routes,
    } = *inputs;
    set_real(rows, &mut cpu.real);
    let n_experts = cpu.geometry.n_experts;
    cpu.uses
        .group(n_experts, &cpu.real, |r| routes.experts.id_row(r));
    let forms = cpu.activations.form(
        cpu.cpu,
        &mut cpu.pool,
        [gate.kernel(), up.kernel()].into_iter(),
        x.first_rows(rows.len()),
        x.width(),
        |row| rows.slot(row).is_some(),
    );
    let (n_hidden, width) = (gate.n_out(), hidden.width());
    let (path, uses) = (cpu.cpu, &cpu.uses);
    let hidden = Spread::new(hidden.floats_mut());
    let n_parts = n_hidden.div_ceil(BATCH_COLUMNS);
    let n_tasks = uses.n_experts() * n_parts;
    cpu.pool
        .run_with(&mut cpu.workers, n_tasks, |task, worker| {
            let (expert, uses) = uses.expert(task / n_parts);
            let first = task % n_parts * BATCH_COLUMNS;
            let gate = (
                gate.rows(expert).part(first, BATCH_COLUMNS),
                forms.of(gate.kernel()),
            );
            let up = (
                up.rows(expert).part(first, BATCH_COLUMNS),
                forms.of(up.kernel()),
            );
            for batch in uses.chunks(BATCH_ROWS) {
                let rows = || batch.iter().map(|u| u.row);
                gate_up_batch(path, worker, gate, up, rows(), |i, gate, up| {
                    let (row, place) = (batch[i].row as usize, batch[i].place as usize);
                    let at = row * width + place * n_hidden + first;
                    // SAFETY: tasks own different columns of different experts, and a row's places
                    // are different columns too.
                    let hidden = unsafe { hidden.slice(at, gate.len()) };
                    swiglu(
                        path,
                        gate,
                        up,
                        clamp,
                        routes.weights.row(row)[place],
                        hidden,
                    );
                });
            }
        });
}
