use ds4_model::RowsImage;

use super::each_row;
use super::elementwise::weighted_sum;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn hc_pre(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    streams: &Buffer,
    gates: &Buffer,
    x: &mut Buffer,
) {
    let path = cpu.cpu;
    each_row(&mut cpu.pool, rows, x, |r, x| {
        weighted_sum(path, streams.row(r), gates.row(r), x);
    });
}
