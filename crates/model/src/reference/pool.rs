use super::{Buffer, real};
use crate::geometry::LayerKind;
use crate::operands::Pool;
use crate::rows::RowsImage;

pub(super) fn pool(rows: &RowsImage, inputs: &Pool<'_, Buffer>, pooled: &mut Buffer) {
    let Pool {
        kind,
        kv,
        gate,
        frontier,
    } = *inputs;
    let ratio = kind.ratio().expect("a compressed layer");
    let (d, dim) = (pooled.width(), kv.width());
    for r in real(rows) {
        let out = pooled.row_mut(r);
        out.fill(0.0);
        if rows.completes(r, ratio).is_none() {
            continue;
        }
        let slot = rows.slot[r] as usize;
        let end = rows.position[r] as usize + 1;
        let batch_start = rows.segment_position(r);
        let first = end.saturating_sub(kind.n_pooled());
        // (projection, gate) of every pooled token, in the half of the channels
        // that belongs to this row.
        let tokens: Vec<(&[f32], &[f32])> = (first..end)
            .map(|p| {
                let own_window = p + ratio >= end;
                let half = if kind == LayerKind::Csa && own_window {
                    d
                } else {
                    0
                };
                let (a, g) = if p >= batch_start {
                    let row = rows.first_row[r] as usize + (p - batch_start);
                    (kv.row(row), gate.row(row))
                } else {
                    frontier.slot_row(slot, p % frontier.n_rows()).split_at(dim)
                };
                (&a[half..half + d], &g[half..half + d])
            })
            .collect();
        for (c, out) in out.iter_mut().enumerate() {
            let max = tokens
                .iter()
                .fold(f32::NEG_INFINITY, |m, (_, g)| m.max(g[c]));
            let (mut sum, mut weight) = (0.0, 0.0);
            for (a, g) in &tokens {
                let p = (g[c] - max).exp();
                weight += p;
                sum += p * a[c];
            }
            *out = sum / weight;
        }
    }
}
