use ds4_model::RowsImage;

use super::each_row;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

/// Most streams that a geometry may have.
const MAX_HC: usize = 16;

pub(crate) fn hc_post(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    y: &Buffer,
    gates: &Buffer,
    streams: &mut Buffer,
) {
    let (path, n) = (cpu.cpu, cpu.geometry.n_hc);
    each_row(&mut cpu.pool, rows, streams, |r, streams| {
        let (y, gates) = (y.row(r), &gates.row(r)[n..]);
        dispatch!(path, post_row(n: usize, y: &[f32], gates: &[f32], streams: &mut [f32]));
    });
}

#[inline(always)]
fn post_row<S: Simd>(s: S, n: usize, y: &[f32], gates: &[f32], streams: &mut [f32]) {
    if n == 4 {
        mix_streams::<S, 4>(s, 4, y, gates, streams);
    } else {
        mix_streams::<S, MAX_HC>(s, n, y, gates, streams);
    }
}

/// `streams'[k] = post[k] * y + Σ_j comb[j, k] * streams[j]` for `n <= N` streams;
/// `gates` is `post[n], comb[n, n]`.
#[inline(always)]
fn mix_streams<S: Simd, const N: usize>(
    s: S,
    n: usize,
    y: &[f32],
    gates: &[f32],
    streams: &mut [f32],
) {
    let n_embd = y.len();
    let (post, comb) = gates.split_at(n);
    let mut new = [s.zero(); N];
    let mut start = 0;
    while start < n_embd {
        let len = LANES.min(n_embd - start);
        let at = start..start + len;
        let y = s.load_part(&y[at.clone()]);
        for k in 0..n {
            new[k] = s.mul(s.splat(post[k]), y);
        }
        for j in 0..n {
            let old = s.load_part(&streams[j * n_embd..][..n_embd][at.clone()]);
            for k in 0..n {
                new[k] = s.fma(s.splat(comb[j * n + k]), old, new[k]);
            }
        }
        for k in 0..n {
            s.store_part(new[k], &mut streams[k * n_embd..][..n_embd][at.clone()]);
        }
        start += LANES;
    }
}
