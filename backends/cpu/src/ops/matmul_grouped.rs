use ds4_model::RowsImage;

use super::matmul::TASK_ROWS;
use super::{dot, real};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::weight::Weight;

pub(crate) fn matmul_grouped(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    weight: &Weight,
    x: &Buffer,
    out: &mut Buffer,
) {
    let (group_dim, out_rank) = (cpu.geometry.group_dim(), cpu.geometry.out_rank);
    let (n_out, width) = (weight.n_out(), out.width());
    let outs = Spread::new(out.floats_mut());
    cpu.pool
        .run_with(&mut cpu.scratch, n_out.div_ceil(TASK_ROWS), |task, w| {
            w.resize(group_dim, 0.0);
            let first = task * TASK_ROWS;
            for o in first..(first + TASK_ROWS).min(n_out) {
                weight.decode(o, w);
                for r in real(rows) {
                    let x = &x.row(r)[o / out_rank * group_dim..][..group_dim];
                    // SAFETY: tasks own different columns, and one value is written at a time.
                    unsafe { outs.slice(r * width + o, 1)[0] = dot(w, x) };
                }
            }
        });
}
