use ds4_model::{LayerKind, RowsImage};

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;

pub(crate) fn pool(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    kind: LayerKind,
    kv: &Buffer,
    gate: &Buffer,
    frontier: &Buffer,
    pooled: &mut Buffer,
) {
    let ratio = kind.ratio().expect("a compressed layer");
    let (d, dim) = (pooled.width(), kv.width());
    each_row(&mut cpu.pool, rows, pooled, |r, out| {
        out.fill(0.0);
        if rows.completes(r, ratio).is_none() {
            return;
        }
        let slot = rows.slot[r] as usize;
        let end = rows.position[r] as usize + 1;
        let batch_start = rows.segment_position(r);
        // (projection, gate) of the token at a position, in the half of the channels that belongs
        // to this row.
        let token = |p: usize| {
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
                let at = frontier.index(slot, p % frontier.n_rows());
                frontier.floats()[at].split_at(dim)
            };
            (&a[half..half + d], &g[half..half + d])
        };
        let tokens: Vec<_> = (end.saturating_sub(kind.n_pooled())..end)
            .map(token)
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
    });
}
