use super::{Buffer, real};
use crate::rows::RowsImage;

pub(super) fn router_scores(rows: &RowsImage, scores: &mut Buffer) {
    for r in real(rows) {
        for s in scores.row_mut(r) {
            *s = softplus(*s).sqrt();
        }
    }
}

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
