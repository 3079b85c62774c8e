use ds4_model::{Compress, RopeTable, Rotation, RowsImage};

use super::add_position_bias::add_position_bias;
use super::each_row;
use super::index_round::index_round_heads;
use super::kv_norm_rope::norm_rotate_round;
use super::pool::{Job, pool_row};
use super::rms_norm::rms_norm_row;
use super::rope::rotate_end;
use super::store_compressed::store_compressed;
use super::store_frontier::store_frontier;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{Simd, dispatch};
use crate::weight::Weight;

pub(crate) fn compress(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    operands: Compress<'_, Buffer, Weight>,
) {
    let Compress {
        compressor,
        rounded,
        kv,
        gate,
        pooled,
        frontier,
        cache,
    } = operands;
    let (path, eps) = (cpu.cpu, cpu.geometry.rms_eps);
    let ratio = compressor.kind.ratio().expect("a compressed layer");
    let table = RopeTable::start_of(ratio);
    let (index, norm) = (compressor.index, compressor.norm.vector());
    add_position_bias(cpu, rows, &compressor.ape, ratio, gate);
    let job = Job {
        rows,
        kind: compressor.kind,
        kv,
        gate,
        frontier,
    };
    let job = &job;
    // Only what completes a row is computed: 1 token in 4 or in 128.
    each_row(&mut cpu.pool, rows, pooled, |r, out| {
        if rows.completes(r, ratio).is_some() {
            let angles = rows.angles(r, table);
            dispatch!(
                path,
                compress_row(
                    job: &Job<'_>, r: usize, eps: f32, norm: &[f32], angles: &[f32],
                    index: bool, rounded: bool, out: &mut [f32],
                )
            );
        }
    });
    store_compressed(cpu, rows, ratio, pooled, cache);
    store_frontier(cpu, rows, kv, gate, frontier);
}

#[inline(always)]
fn compress_row<S: Simd>(
    s: S,
    job: &Job<'_>,
    r: usize,
    eps: f32,
    norm: &[f32],
    angles: &[f32],
    index: bool,
    rounded: bool,
    out: &mut [f32],
) {
    pool_row(s, job, r, out);
    if index {
        rms_norm_row(s, eps, norm, out);
        rotate_end(s, Rotation::Forward, angles, out);
        if rounded {
            index_round_heads(s, out.len(), out);
        }
    } else {
        norm_rotate_round(s, eps, norm, angles, rounded, out);
    }
}
