use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn select_rows(cpu: &mut CpuBackend, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
    each_row(&mut cpu.pool, rows, out, |r, out| {
        out.copy_from_slice(x.row(rows.source[r] as usize));
    });
}
