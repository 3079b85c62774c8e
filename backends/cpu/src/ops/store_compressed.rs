use ds4_model::RowsImage;

use super::{real, store};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn store_compressed(
    cpu: &CpuBackend,
    rows: &RowsImage,
    ratio: usize,
    pooled: &Buffer,
    cache: &mut Buffer,
) {
    for r in real(rows) {
        if let Some(index) = rows.completes(r, ratio) {
            let row = rows.first_compressed(r, ratio) + index;
            store(cpu.cpu, cache, 0, row, 0, pooled.row(r));
        }
    }
}
