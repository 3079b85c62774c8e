use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn store_frontier(rows: &RowsImage, kv: &Buffer, gate: &Buffer, frontier: &mut Buffer) {
    let dim = frontier.width() / 2;
    for r in real(rows) {
        let slot = rows.slot[r] as usize;
        let at = rows.position[r] as usize % frontier.n_rows();
        frontier.store(slot, at, 0, &kv.row(r)[..dim]);
        frontier.store(slot, at, dim, &gate.row(r)[..dim]);
    }
}
