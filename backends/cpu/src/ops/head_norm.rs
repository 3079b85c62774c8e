use ds4_model::RowsImage;

use super::{each_head, inverse_rms};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn head_norm(cpu: &mut CpuBackend, rows: &RowsImage, head_dim: usize, x: &mut Buffer) {
    let eps = cpu.geometry.rms_eps;
    each_head(&mut cpu.pool, rows, head_dim, x, |_, head| {
        let inv = inverse_rms(head, eps);
        for x in head {
            *x *= inv;
        }
    });
}
