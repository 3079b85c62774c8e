use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn store_compressed(
    rows: &RowsImage,
    ratio: usize,
    pooled: &Buffer,
    cache: &mut Buffer,
) {
    for r in real(rows) {
        if let Some(index) = rows.completes(r, ratio) {
            let row = rows.first_compressed(r, ratio) + index;
            cache.store(0, row, 0, pooled.row(r));
        }
    }
}
