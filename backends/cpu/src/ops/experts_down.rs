use ds4_model::{Routes, RowsImage};

use super::set_real;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::kernels::RowPair;
use crate::pool::Spread;
use crate::products::{BATCH_COLUMNS, BATCH_ROWS};
use crate::weight::Weight;

/// Every task adds up its columns over all experts, in ascending order: no two write the same sums.
pub(crate) fn experts_down(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    down: &Weight,
    hidden: &Buffer,
    routes: &Routes<Buffer>,
    out: &mut Buffer,
) {
    set_real(rows, &mut cpu.real);
    let geometry = &cpu.geometry;
    let (n_experts, n_used) = (geometry.n_experts, geometry.n_experts_used);
    cpu.uses
        .group(n_experts, &cpu.real, |r| routes.experts.id_row(r));
    let forms = cpu.activations.form(
        cpu.cpu,
        &mut cpu.pool,
        std::iter::once(down.kernel()),
        hidden.first_rows(rows.len()),
        down.n_in(),
        |i| rows.slot(i / n_used).is_some(),
    );
    let acts = forms.of(down.kernel());
    let (n_out, width) = (down.n_out(), out.width());
    let (path, uses, real) = (cpu.cpu, &cpu.uses, &cpu.real);
    let outs = Spread::new(out.floats_mut());
    let n_tasks = n_out.div_ceil(BATCH_COLUMNS);
    cpu.pool
        .run_with(&mut cpu.workers, n_tasks, |task, worker| {
            let first = task * BATCH_COLUMNS;
            let n = BATCH_COLUMNS.min(n_out - first);
            // SAFETY: tasks own different columns.
            let out = |row: u32| unsafe { outs.slice(row as usize * width + first, n) };
            for pair in real {
                out(pair.to).fill(0.0);
            }
            for i in 0..uses.n_experts() {
                let (expert, uses) = uses.expert(i);
                let weights = down.rows(expert).part(first, n);
                for batch in uses.chunks(BATCH_ROWS) {
                    worker.pairs.clear();
                    worker
                        .pairs
                        .extend(batch.iter().zip(0..).map(|(u, to)| RowPair {
                            from: u.row * n_used as u32 + u.place,
                            to,
                        }));
                    let products = worker.batch.as_mut_ptr();
                    // SAFETY: the form is of this path, and the batch has room for these rows and
                    // columns.
                    unsafe {
                        weights.multiply(
                            path,
                            acts,
                            &worker.pairs,
                            products,
                            n,
                            &mut worker.scratch,
                        );
                    }
                    for (u, products) in batch.iter().zip(worker.batch.chunks_exact(n)) {
                        for (out, x) in out(u.row).iter_mut().zip(products) {
                            *out += x;
                        }
                    }
                }
            }
        });
}
