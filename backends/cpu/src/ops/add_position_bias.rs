use ds4_model::RowsImage;

use super::add::add_row;
use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::dispatch;
use crate::weight::Weight;

pub(crate) fn add_position_bias(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    ape: &Weight,
    ratio: usize,
    gate: &mut Buffer,
) {
    let (path, ape) = (cpu.cpu, ape.vector());
    each_row(&mut cpu.pool, rows, gate, |r, gate| {
        let bias = &ape[rows.position[r] as usize % ratio * gate.len()..][..gate.len()];
        dispatch!(path, add_row(bias: &[f32], gate: &mut [f32]));
    });
}
