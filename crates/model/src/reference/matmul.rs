use super::{Buffer, Weight, dot, real};
use crate::rows::RowsImage;

pub(super) fn matmul(rows: &RowsImage, weight: &Weight, x: &Buffer, out: &mut Buffer) {
    let mut w = vec![0.0; weight.n_in()];
    for o in 0..weight.n_out() {
        weight.decode(o, &mut w);
        for r in real(rows) {
            out.row_mut(r)[o] = dot(&w, x.row(r));
        }
    }
}
