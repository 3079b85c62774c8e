use ds4_model::RowsImage;

use super::{real, store};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn store_window(cpu: &CpuBackend, rows: &RowsImage, kv: &Buffer, window: &mut Buffer) {
    let n_ring = window.n_rows();
    for r in real(rows) {
        // Of a segment longer than the ring only the last rows remain.
        if rows.end_row[r] as usize - r <= n_ring {
            let at = rows.position[r] as usize % n_ring;
            store(cpu.cpu, window, rows.slot[r] as usize, at, 0, kv.row(r));
        }
    }
}
