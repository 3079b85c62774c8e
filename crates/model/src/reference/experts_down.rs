use super::{Buffer, Weight, dot, real};
use crate::operands::Routes;
use crate::rows::RowsImage;

pub(super) fn experts_down(
    rows: &RowsImage,
    down: &Weight,
    hidden: &Buffer,
    routes: &Routes<Buffer>,
    out: &mut Buffer,
) {
    let (n_in, n_out) = (down.n_in(), down.n_out());
    let mut w = vec![0.0; n_in];
    for r in real(rows) {
        let out = out.row_mut(r);
        out.fill(0.0);
        let hidden = hidden.row(r).chunks_exact(n_in);
        for (expert, hidden) in routes.experts.ids(r).iter().zip(hidden) {
            for (o, out) in out.iter_mut().enumerate() {
                down.decode(*expert as usize * n_out + o, &mut w);
                *out += dot(&w, hidden);
            }
        }
    }
}
