use ds4_model::RowsImage;

use super::real;
use crate::buffer::Buffer;

pub(crate) fn store_frontier(rows: &RowsImage, kv: &Buffer, gate: &Buffer, frontier: &mut Buffer) {
    let dim = frontier.width() / 2;
    let n_ring = frontier.n_rows();
    for r in real(rows) {
        // Of a segment longer than the ring only the last rows remain.
        if rows.segment_end(r) - r > n_ring {
            continue;
        }
        let slot = rows.slot[r] as usize;
        let at = rows.position[r] as usize % n_ring;
        frontier.store(slot, at, 0, &kv.row(r)[..dim]);
        frontier.store(slot, at, dim, &gate.row(r)[..dim]);
    }
}
