use ds4_model::{Routes, RowsImage};

use super::matmul::TASK_ROWS;
use super::{dot, real, swiglu};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::pool::Spread;
use crate::weight::Weight;

pub(crate) fn experts_gate_up(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    gate: &Weight,
    up: &Weight,
    clamp: f32,
    x: &Buffer,
    routes: &Routes<Buffer>,
    hidden: &mut Buffer,
) {
    let (n_in, n_hidden, width) = (gate.n_in(), gate.n_out(), hidden.width());
    let n_blocks = n_hidden.div_ceil(TASK_ROWS);
    let n_experts = cpu.geometry.n_experts;
    let hidden = Spread::new(hidden.floats_mut());
    cpu.pool
        .run_with(&mut cpu.scratch, n_experts * n_blocks, |task, w| {
            let (expert, first) = (task / n_blocks, task % n_blocks * TASK_ROWS);
            // (row, place among its experts) of every use of this expert.
            let uses = || {
                real(rows).flat_map(|r| {
                    let chosen = routes.experts.id_row(r).iter().enumerate();
                    chosen
                        .filter(|(_, e)| **e as usize == expert)
                        .map(move |(i, _)| (r, i))
                })
            };
            if uses().next().is_none() {
                return;
            }
            w.resize(2 * n_in, 0.0);
            let (wg, wu) = w.split_at_mut(n_in);
            for o in first..(first + TASK_ROWS).min(n_hidden) {
                gate.decode(expert * n_hidden + o, wg);
                up.decode(expert * n_hidden + o, wu);
                for (r, i) in uses() {
                    let x = x.row(r);
                    let weight = routes.weights.row(r)[i];
                    let h = swiglu(dot(wg, x), dot(wu, x), clamp, weight);
                    // SAFETY: tasks own different columns of different experts, and one value is
                    // written at a time.
                    unsafe { hidden.slice(r * width + i * n_hidden + o, 1)[0] = h };
                }
            }
        });
}
