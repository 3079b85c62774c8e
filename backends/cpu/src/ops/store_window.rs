use ds4_model::RowsImage;

use super::real;
use crate::buffer::Buffer;

pub(crate) fn store_window(rows: &RowsImage, kv: &Buffer, window: &mut Buffer) {
    let n_ring = window.n_rows();
    for r in real(rows) {
        // Of a segment longer than the ring only the last rows remain.
        if rows.segment_end(r) - r > n_ring {
            continue;
        }
        let slot = rows.slot[r] as usize;
        window.store(slot, rows.position[r] as usize % n_ring, 0, kv.row(r));
    }
}
