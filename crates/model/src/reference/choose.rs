use super::top_k::largest;
use super::{Buffer, real};
use crate::operands::Choice;
use crate::rows::RowsImage;

pub(super) fn choose(rows: &RowsImage, logits: &Buffer, choice: &mut Choice<Buffer>) {
    let n = choice.ids.width();
    for r in real(rows) {
        let logits = logits.row(r);
        let chosen = largest(logits, n);
        for (id, index) in choice.ids.ids_mut(r).iter_mut().zip(&chosen) {
            *id = *index as u32;
        }
        for (value, index) in choice.values.row_mut(r).iter_mut().zip(&chosen) {
            *value = logits[*index];
        }
        let lse = [1.0, rows.inv_temperature[r]].map(|scale| log_sum_exp(logits, scale));
        choice.lse.row_mut(r).copy_from_slice(&lse);
    }
}

/// `ln Σ exp(scale * x)`; NaN when an `x` is not finite.
fn log_sum_exp(values: &[f32], scale: f32) -> f32 {
    if values.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let max = values.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = values
        .iter()
        .map(|x| (f64::from(x - max) * f64::from(scale)).exp())
        .sum();
    (f64::from(max) * f64::from(scale) + sum.ln()) as f32
}
