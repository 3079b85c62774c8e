use super::{Buffer, Weight, dot, real, swiglu};
use crate::operands::GateUp;
use crate::rows::RowsImage;

pub(super) fn gate_up(rows: &RowsImage, inputs: &GateUp<'_, Buffer, Weight>, hidden: &mut Buffer) {
    let GateUp { gate, up, clamp, x } = *inputs;
    let (mut wg, mut wu) = (vec![0.0; gate.n_in()], vec![0.0; up.n_in()]);
    for i in 0..gate.n_out() {
        gate.decode(i, &mut wg);
        up.decode(i, &mut wu);
        for r in real(rows) {
            let x = x.row(r);
            hidden.row_mut(r)[i] = swiglu(dot(&wg, x), dot(&wu, x), clamp, 1.0);
        }
    }
}
