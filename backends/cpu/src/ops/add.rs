use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn add(cpu: &mut CpuBackend, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
    each_row(&mut cpu.pool, rows, out, |r, out| {
        for (out, x) in out.iter_mut().zip(x.row(r)) {
            *out += x;
        }
    });
}
