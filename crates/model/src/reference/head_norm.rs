use super::{Buffer, mean_square, real};
use crate::rows::RowsImage;

pub(super) fn head_norm(eps: f32, rows: &RowsImage, head_dim: usize, x: &mut Buffer) {
    for r in real(rows) {
        for head in x.row_mut(r).chunks_exact_mut(head_dim) {
            let inv = 1.0 / (mean_square(head) + eps).sqrt();
            for x in head {
                *x *= inv;
            }
        }
    }
}
