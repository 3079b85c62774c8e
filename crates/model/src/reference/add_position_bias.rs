use super::{Buffer, Weight, real};
use crate::rows::RowsImage;

pub(super) fn add_position_bias(rows: &RowsImage, ape: &Weight, ratio: usize, gate: &mut Buffer) {
    let dim = gate.width();
    for r in real(rows) {
        let bias = &ape.vector()[rows.position[r] as usize % ratio * dim..][..dim];
        for (g, b) in gate.row_mut(r).iter_mut().zip(bias) {
            *g += b;
        }
    }
}
