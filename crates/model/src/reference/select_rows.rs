use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn select_rows(rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
    for r in real(rows) {
        out.row_mut(r)
            .copy_from_slice(x.row(rows.source[r] as usize));
    }
}
