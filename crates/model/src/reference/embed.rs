use super::{Buffer, Weight, real};
use crate::rows::RowsImage;

pub(super) fn embed(rows: &RowsImage, table: &Weight, streams: &mut Buffer) {
    let mut e = vec![0.0; table.n_in()];
    for r in real(rows) {
        table.decode(rows.token[r] as usize, &mut e);
        for stream in streams.row_mut(r).chunks_exact_mut(e.len()) {
            stream.copy_from_slice(&e);
        }
    }
}
