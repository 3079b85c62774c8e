use ds4_model::RowsImage;

use super::each_row;
use super::elementwise::{inverse_rms, scale_by};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn rms_norm(cpu: &mut CpuBackend, rows: &RowsImage, weight: &Weight, x: &mut Buffer) {
    let (path, eps) = (cpu.cpu, cpu.geometry.rms_eps);
    let weight = weight.vector();
    each_row(&mut cpu.pool, rows, x, |_, x| {
        let inv = inverse_rms(path, x, eps);
        scale_by(path, x, inv, weight);
    });
}
