use ds4_model::RowsImage;

use super::matmul::TASK_ROWS;
use super::{dot, real, swiglu};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::weight::Weight;

pub(crate) fn gate_up(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    gate: &Weight,
    up: &Weight,
    clamp: f32,
    x: &Buffer,
    hidden: &mut Buffer,
) {
    let (n_in, n_out, width) = (gate.n_in(), gate.n_out(), hidden.width());
    let hidden = Spread::new(hidden.floats_mut());
    cpu.pool
        .run_with(&mut cpu.scratch, n_out.div_ceil(TASK_ROWS), |task, w| {
            w.resize(2 * n_in, 0.0);
            let (wg, wu) = w.split_at_mut(n_in);
            let first = task * TASK_ROWS;
            for o in first..(first + TASK_ROWS).min(n_out) {
                gate.decode(o, wg);
                up.decode(o, wu);
                for r in real(rows) {
                    let x = x.row(r);
                    let h = swiglu(dot(wg, x), dot(wu, x), clamp, 1.0);
                    // SAFETY: tasks own different columns, and one value is written at a time.
                    unsafe { hidden.slice(r * width + o, 1)[0] = h };
                }
            }
        });
}
