use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn router_scores(cpu: &mut CpuBackend, rows: &RowsImage, scores: &mut Buffer) {
    each_row(&mut cpu.pool, rows, scores, |_, scores| {
        for s in scores {
            *s = softplus(*s).sqrt();
        }
    });
}

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
