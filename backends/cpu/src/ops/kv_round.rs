use ds4_model::RowsImage;
use ds4_model::rounding::kv_round_row;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn kv_round(cpu: &mut CpuBackend, rows: &RowsImage, x: &mut Buffer) {
    let rope_dim = cpu.geometry.rope_dim;
    each_row(&mut cpu.pool, rows, x, |_, x| kv_round_row(x, rope_dim));
}
