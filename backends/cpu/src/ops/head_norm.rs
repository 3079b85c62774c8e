use ds4_model::RowsImage;

use super::each_head;
use super::elementwise::{inverse_rms, scale};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn head_norm(cpu: &mut CpuBackend, rows: &RowsImage, head_dim: usize, x: &mut Buffer) {
    let (path, eps) = (cpu.cpu, cpu.geometry.rms_eps);
    each_head(&mut cpu.pool, rows, head_dim, x, |_, head| {
        let inv = inverse_rms(path, head, eps);
        scale(path, head, inv);
    });
}
