use ds4_model::RowsImage;
use ds4_model::rounding::index_round_row;

use super::each_head;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn index_round(cpu: &mut CpuBackend, rows: &RowsImage, x: &mut Buffer) {
    let dim = cpu.geometry.index_dim;
    each_head(&mut cpu.pool, rows, dim, x, |_, head| index_round_row(head));
}
