use ds4_model::RowsImage;

use super::{MAX_STREAMS, TASK_LEN};
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::lanes::{Lanes, on_every_path};
use crate::pool::Spread;

pub(crate) fn hc_post(
    cpu: &mut CpuBackend,
    rows: &RowsImage,
    y: &Buffer,
    gates: &Buffer,
    streams: &mut Buffer,
) {
    let (n, n_embd) = (cpu.geometry.n_hc, cpu.geometry.n_embd);
    let (path, width) = (cpu.cpu, streams.width());
    // Channels of a task, which mixes all streams.
    let part = (TASK_LEN / n).next_multiple_of(64);
    let n_parts = n_embd.div_ceil(part);
    let streams = Spread::new(streams.floats_mut());
    cpu.pool.run(rows.len() * n_parts, |task, _| {
        let (r, first) = (task / n_parts, task % n_parts * part);
        if rows.slot(r).is_none() {
            return;
        }
        let len = part.min(n_embd - first);
        let (post, comb) = gates.row(r)[n..].split_at(n);
        let y = &y.row(r)[first..first + len];
        let mut starts = [std::ptr::null_mut(); MAX_STREAMS];
        for (j, start) in starts[..n].iter_mut().enumerate() {
            let at = r * width + j * n_embd + first;
            // SAFETY: tasks own different channels.
            *start = unsafe { streams.slice(at, len) }.as_mut_ptr();
        }
        // SAFETY: each start has `len` channels that this task owns.
        unsafe { mix(path, y, post, &comb[..n * n], &starts[..n]) };
    });
}

on_every_path! {
    /// `streams'[k] = post[k] * y + Σ_j comb[j, k] * streams[j]` where the streams begin.
    unsafe fn mix(y: &[f32], post: &[f32], comb: &[f32], streams: &[*mut f32]) = mix_lanes;
}

/// # Safety
/// As [`Lanes`]; every stream has as many channels as `y`, which nobody else uses.
#[inline(always)]
unsafe fn mix_lanes<L: Lanes>(y: &[f32], post: &[f32], comb: &[f32], streams: &[*mut f32]) {
    let n = streams.len();
    assert!(n <= MAX_STREAMS && post.len() == n && comb.len() == n * n);
    // SAFETY: the caller's promise.
    unsafe {
        if n == 4 {
            // With a constant number of streams, they stay in registers.
            mix_n::<L>(4, y, post, comb, streams);
        } else {
            mix_n::<L>(n, y, post, comb, streams);
        }
    }
}

/// # Safety
/// As [`mix_lanes`].
#[inline(always)]
unsafe fn mix_n<L: Lanes>(n: usize, y: &[f32], post: &[f32], comb: &[f32], streams: &[*mut f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..y.len()).step_by(L::N) {
            let left = y.len() - i;
            let y = L::load_first(y.as_ptr().add(i), left);
            let mut old = [L::splat(0.0); MAX_STREAMS];
            for j in 0..n {
                old[j] = L::load_first(streams[j].add(i), left);
            }
            for k in 0..n {
                let mut mixed = y.mul(L::splat(post[k]));
                for j in 0..n {
                    mixed = old[j].mul_add(L::splat(comb[j * n + k]), mixed);
                }
                mixed.store_first(streams[k].add(i), left);
            }
        }
    }
}
