use ds4_model::{Routes, RowsImage};

use super::matmul::TASK_ROWS;
use super::{dot, real};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::weight::Weight;

pub(crate) fn experts_down(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    down: &Weight,
    hidden: &Buffer,
    routes: &Routes<Buffer>,
    out: &mut Buffer,
) {
    let (n_in, n_out, width) = (down.n_in(), down.n_out(), out.width());
    let outs = Spread::new(out.floats_mut());
    cpu.pool
        .run_with(&mut cpu.scratch, n_out.div_ceil(TASK_ROWS), |task, w| {
            w.resize(n_in, 0.0);
            let first = task * TASK_ROWS;
            for o in first..(first + TASK_ROWS).min(n_out) {
                for r in real(rows) {
                    let mut sum = 0.0;
                    let hidden = hidden.row(r).chunks_exact(n_in);
                    for (expert, hidden) in routes.experts.id_row(r).iter().zip(hidden) {
                        down.decode(*expert as usize * n_out + o, w);
                        sum += dot(w, hidden);
                    }
                    // SAFETY: tasks own different columns, and one value is written at a time.
                    unsafe { outs.slice(r * width + o, 1)[0] = sum };
                }
            }
        });
}
