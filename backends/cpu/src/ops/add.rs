use ds4_model::RowsImage;

use super::{each_row, elementwise};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn add(cpu: &mut CpuBackend, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
    let path = cpu.cpu;
    each_row(&mut cpu.pool, rows, out, |r, out| {
        elementwise::add(path, x.row(r), out);
    });
}
