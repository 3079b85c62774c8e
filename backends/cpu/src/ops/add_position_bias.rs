use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn add_position_bias(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    ape: &Weight,
    ratio: usize,
    gate: &mut Buffer,
) {
    let ape = ape.vector();
    each_row(&mut cpu.pool, rows, gate, |r, gate| {
        let bias = &ape[rows.position[r] as usize % ratio * gate.len()..];
        for (g, b) in gate.iter_mut().zip(bias) {
            *g += b;
        }
    });
}
