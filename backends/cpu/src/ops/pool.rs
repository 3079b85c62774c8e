use ds4_model::{LayerKind, Pool, RowsImage};

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

pub(crate) fn pool(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    inputs: &Pool<'_, Buffer>,
    pooled: &mut Buffer,
) {
    let path = cpu.cpu;
    let Pool {
        kind,
        kv,
        gate,
        frontier,
    } = *inputs;
    let job = Job {
        rows,
        kind,
        kv,
        gate,
        frontier,
    };
    let job = &job;
    each_row(&mut cpu.pool, rows, pooled, |r, out| {
        let ratio = kind.ratio().expect("a compressed layer");
        if rows.completes(r, ratio).is_some() {
            dispatch!(path, pool_row(job: &Job<'_>, r: usize, out: &mut [f32]));
        } else {
            out.fill(0.0);
        }
    });
}

/// What a compressed row is made of.
pub(crate) struct Job<'a> {
    pub(crate) rows: &'a RowsImage,
    pub(crate) kind: LayerKind,
    pub(crate) kv: &'a Buffer,
    pub(crate) gate: &'a Buffer,
    pub(crate) frontier: &'a Buffer,
}

/// Pools the compressed row that row `r` completes.
#[inline(always)]
pub(crate) fn pool_row<S: Simd>(s: S, job: &Job<'_>, r: usize, out: &mut [f32]) {
    let Job {
        rows,
        kind,
        kv,
        gate,
        frontier,
    } = *job;
    let (d, dim) = (out.len(), kv.width());
    let ratio = kind.ratio().expect("a compressed layer");
    let slot = rows.slot[r] as usize;
    let end = rows.position[r] as usize + 1;
    let batch_start = rows.segment_position(r);
    let first = end.saturating_sub(kind.n_pooled());
    let (kv, gate, past) = (kv.floats(), gate.floats(), frontier.floats());
    // Projection and gate of the token at position `p`, from channel `c` on, in the half of the
    // channels that belongs to this row.
    let token = |p: usize, c: usize| {
        let own_window = p + ratio >= end;
        let c = c + if kind == LayerKind::Csa && own_window {
            d
        } else {
            0
        };
        if p >= batch_start {
            let at = (rows.first_row[r] as usize + (p - batch_start)) * dim + c;
            (&kv[at..], &gate[at..])
        } else {
            let at = frontier.index(slot, p % frontier.n_rows()).start + c;
            (&past[at..], &past[at + dim..])
        }
    };
    // The channels of a few vectors at a time, so that a token's row is found once for them.
    const VECTORS: usize = 4;
    let mut c = 0;
    while c < d {
        let len = (VECTORS * LANES).min(d - c);
        // The channels of vector `v`; none when the row ends before it.
        let part = |v: usize| (v * LANES).min(len)..((v + 1) * LANES).min(len);
        let mut max = [s.splat(f32::NEG_INFINITY); VECTORS];
        for p in first..end {
            let (_, g) = token(p, c);
            for v in 0..VECTORS {
                max[v] = s.max(s.load_part(&g[part(v)]), max[v]);
            }
        }
        let (mut sum, mut weight) = ([s.zero(); VECTORS], [s.zero(); VECTORS]);
        for p in first..end {
            let (a, g) = token(p, c);
            for v in 0..VECTORS {
                let e = s.exp(s.sub(s.load_part(&g[part(v)]), max[v]));
                weight[v] = s.add(weight[v], e);
                sum[v] = s.fma(e, s.load_part(&a[part(v)]), sum[v]);
            }
        }
        for (v, out) in out[c..c + len].chunks_mut(LANES).enumerate() {
            s.store_part(s.div(sum[v], weight[v]), out);
        }
        c += len;
    }
}
