use std::ops::Range;

use ds4_formats::GgmlType;
use ds4_model::geometry::CSA_RATIO;
use ds4_model::{ElementType, Place, RowsImage};

use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::kernels::{Job, float};
use crate::lanes::{Lanes, on_every_path};
use crate::pool::Spread;
use crate::products::{INDEX_ROWS, MAX_INDEX_HEADS};

/// The products of all heads with a few index rows at a time, then their weighted sum.
pub(crate) fn index_scores(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    range: Range<usize>,
    iq: &Buffer,
    weights: &Buffer,
    cache: &Buffer,
    scores: &mut Buffer,
) {
    let geometry = &cpu.geometry;
    let (dim, n_heads) = (geometry.index_dim, geometry.n_index_heads);
    let scale = (dim as f32).powf(-0.5) * (n_heads as f32).powf(-0.5);
    let (path, width) = (cpu.cpu, scores.width());
    let row_bytes = cache.row_bytes();
    let ty = match cache.element() {
        ElementType::Bf16 => GgmlType::BF16,
        _ => GgmlType::F32,
    };
    let visible = |r: usize| rows.slot(r).map_or(0, |_| rows.n_visible(r, CSA_RATIO));
    let most = range.clone().map(visible).fold(0, usize::max);
    let n_parts = most.div_ceil(INDEX_ROWS);
    let outs = Spread::new(scores.floats_mut());
    let n_tasks = range.len() * n_parts;
    cpu.pool
        .run_with(&mut cpu.workers, n_tasks, |task, worker| {
            let (i, first) = (task / n_parts, task % n_parts * INDEX_ROWS);
            let r = range.start + i;
            let n = INDEX_ROWS.min(visible(r).saturating_sub(first));
            if n == 0 {
                return;
            }
            let slot = rows.slot[r] as usize;
            let start = cache.byte_offset(Place { slot, row: first });
            // SAFETY: tasks own different scores.
            let out = unsafe { outs.slice(i * width + first, n) };
            let memory = &mut worker.index;
            let mut factors = [0.0; MAX_INDEX_HEADS];
            for heads in (0..n_heads).step_by(MAX_INDEX_HEADS) {
                let n_heads = MAX_INDEX_HEADS.min(n_heads - heads);
                let job = Job {
                    ty,
                    weights: &cache.bytes()[start..][..n * row_bytes],
                    row_bytes,
                    n_in: dim,
                    acts: zerocopy::IntoBytes::as_bytes(&iq.row(r)[heads * dim..][..n_heads * dim]),
                    act_stride: 4 * dim,
                    pairs: &worker.heads[..n_heads],
                    out: memory.as_mut_ptr(),
                    out_stride: INDEX_ROWS,
                };
                // SAFETY: rows of `dim` elements on both sides; the memory has a row for every head.
                unsafe { float::dots(path, &job) };
                for (factor, weight) in factors.iter_mut().zip(&weights.row(r)[heads..]) {
                    *factor = weight * scale;
                }
                sum_heads(path, memory, &factors[..n_heads], heads > 0, out);
            }
        });
}

on_every_path! {
    /// `out[c] = Σ_h factors[h] * max(0, products[h, c])`, added to what is there when `more`.
    fn sum_heads(products: &[f32], factors: &[f32], more: bool, out: &mut [f32]) = sum_heads_lanes;
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn sum_heads_lanes<L: Lanes>(
    products: &[f32],
    factors: &[f32],
    more: bool,
    out: &mut [f32],
) {
    let n = out.len();
    assert!(n <= INDEX_ROWS && products.len() >= factors.len() * INDEX_ROWS);
    // SAFETY: the caller's promise; rows of products have room for a whole vector.
    unsafe {
        let zero = L::splat(0.0);
        for i in (0..n).step_by(L::N) {
            let at = out.as_mut_ptr().add(i);
            let mut sum = if more { L::load_first(at, n - i) } else { zero };
            for (h, factor) in factors.iter().enumerate() {
                let product = L::load(products.as_ptr().add(h * INDEX_ROWS + i));
                sum = product.max(zero).mul_add(L::splat(*factor), sum);
            }
            sum.store_first(at, n - i);
        }
    }
}
