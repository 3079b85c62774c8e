use ds4_model::RowsImage;

use super::{each_row, inverse_rms};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::weight::Weight;

pub(crate) fn rms_norm(cpu: &mut CpuBackend, rows: &RowsImage, weight: &Weight, x: &mut Buffer) {
    let eps = cpu.geometry.rms_eps;
    let weight = weight.vector();
    each_row(&mut cpu.pool, rows, x, |_, x| {
        let inv = inverse_rms(x, eps);
        for (x, w) in x.iter_mut().zip(weight) {
            *x = w * (*x * inv);
        }
    });
}
