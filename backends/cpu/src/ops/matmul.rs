use ds4_model::RowsImage;

use super::{dot, real};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::weight::Weight;

/// Weight rows that one task multiplies.
pub(crate) const TASK_ROWS: usize = 16;

pub(crate) fn matmul(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    weight: &Weight,
    x: &Buffer,
    out: &mut Buffer,
) {
    let (n_in, n_out, width) = (weight.n_in(), weight.n_out(), out.width());
    let outs = Spread::new(out.floats_mut());
    cpu.pool
        .run_with(&mut cpu.scratch, n_out.div_ceil(TASK_ROWS), |task, w| {
            w.resize(n_in, 0.0);
            let first = task * TASK_ROWS;
            for o in first..(first + TASK_ROWS).min(n_out) {
                weight.decode(o, w);
                for r in real(rows) {
                    // SAFETY: tasks own different columns, and one value is written at a time.
                    unsafe { outs.slice(r * width + o, 1)[0] = dot(w, x.row(r)) };
                }
            }
        });
}
