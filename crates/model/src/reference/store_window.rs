use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn store_window(rows: &RowsImage, kv: &Buffer, window: &mut Buffer) {
    // In ascending order, so that of a segment longer than the ring the last
    // rows remain.
    for r in real(rows) {
        let slot = rows.slot[r] as usize;
        let at = rows.position[r] as usize % window.n_rows();
        window.store(slot, at, 0, kv.row(r));
    }
}
