use super::{Buffer, Weight, mean_square, real};
use crate::rows::RowsImage;

pub(super) fn rms_norm(eps: f32, rows: &RowsImage, weight: &Weight, x: &mut Buffer) {
    for r in real(rows) {
        let x = x.row_mut(r);
        let inv = 1.0 / (mean_square(x) + eps).sqrt();
        for (x, w) in x.iter_mut().zip(weight.vector()) {
            *x = w * (*x * inv);
        }
    }
}
