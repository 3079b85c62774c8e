use super::{Buffer, Weight, dot, real, swiglu};
use crate::operands::ExpertsGateUp;
use crate::rows::RowsImage;

pub(super) fn experts_gate_up(
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
    let n_hidden = gate.n_out();
    let (mut wg, mut wu) = (vec![0.0; gate.n_in()], vec![0.0; up.n_in()]);
    for r in real(rows) {
        let chosen = routes.experts.ids(r).iter().zip(routes.weights.row(r));
        let hidden = hidden.row_mut(r).chunks_exact_mut(n_hidden);
        for ((expert, weight), hidden) in chosen.zip(hidden) {
            for (i, h) in hidden.iter_mut().enumerate() {
                gate.decode(*expert as usize * n_hidden + i, &mut wg);
                up.decode(*expert as usize * n_hidden + i, &mut wu);
                *h = swiglu(dot(&wg, x.row(r)), dot(&wu, x.row(r)), clamp, *weight);
            }
        }
    }
}
