use ds4_model::RowsImage;

use super::{real, store};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn store_frontier(
    cpu: &CpuBackend,
    rows: &RowsImage,
    kv: &Buffer,
    gate: &Buffer,
    frontier: &mut Buffer,
) {
    let dim = frontier.width() / 2;
    let n_ring = frontier.n_rows();
    for r in real(rows) {
        // Of a segment longer than the ring only the last rows remain.
        if rows.end_row[r] as usize - r <= n_ring {
            let slot = rows.slot[r] as usize;
            let at = rows.position[r] as usize % n_ring;
            store(cpu.cpu, frontier, slot, at, 0, &kv.row(r)[..dim]);
            store(cpu.cpu, frontier, slot, at, dim, &gate.row(r)[..dim]);
        }
    }
}
