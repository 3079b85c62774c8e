use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn add(rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
    for r in real(rows) {
        for (out, x) in out.row_mut(r).iter_mut().zip(x.row(r)) {
            *out += x;
        }
    }
}
