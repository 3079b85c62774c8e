//! The products of the streams with a hyper-connection's matrix, which `hc_gates`, `hc_pre_norm` and
//! `hc_head` begin with.

use ds4_model::RowsImage;

use crate::buffer::Buffer;
use crate::kernels::RowPair;
use crate::path::Cpu;
use crate::pool::{Pool, Spread};
use crate::products::{Activations, Worker};
use crate::weight::Weight;

/// Rows of a step that share one reading of the weights.
const BLOCK_ROWS: usize = 6;
/// Products of a row that are a task of a step of few rows.
const PART_LEN: usize = 4;

/// What the products run on.
pub(crate) struct Means<'a> {
    pub(crate) cpu: Cpu,
    pub(crate) pool: &'a mut Pool,
    pub(crate) workers: &'a mut [Worker],
    pub(crate) activations: &'a mut Activations,
}

/// Writes `fn[i] · v` for every row's streams `v` and every `i` to `out`, `[n_rows, n_out]`, and runs
/// `finish(row, products)` on each row that is not padding.
///
/// A step of few rows is divided by products, because the weights are what must be read; one of
/// many rows is divided by rows, and a row is finished while its streams are at hand.
pub(crate) fn mix<F>(
    means: Means<'_>,
    rows: &RowsImage,
    streams: &Buffer,
    weight: &Weight,
    out: &mut [f32],
    finish: F,
) where
    F: Fn(usize, &mut [f32]) + Sync,
{
    let Means {
        cpu,
        pool,
        workers,
        activations,
    } = means;
    let (n_rows, n_out) = (rows.len(), weight.n_out());
    let kernels = std::iter::once(weight.kernel());
    let forms = activations.form(
        cpu,
        pool,
        kernels,
        streams.first_rows(n_rows),
        streams.width(),
        |_| true,
    );
    let acts = forms.of(weight.kernel());
    let n_blocks = n_rows.div_ceil(BLOCK_ROWS);
    let whole = n_blocks >= pool.n_threads();
    let part_len = if whole { n_out } else { PART_LEN };
    let n_parts = n_out.div_ceil(part_len);
    let out = Spread::new(&mut out[..n_rows * n_out]);
    let finish = |row: usize| {
        if rows.slot(row).is_some() {
            // SAFETY: one task finishes a row, after the tasks that wrote its products.
            finish(row, unsafe { out.slice(row * n_out, n_out) });
        }
    };
    pool.run_with(workers, n_blocks * n_parts, |task, worker| {
        let first = task / n_parts * BLOCK_ROWS;
        let block = first..(first + BLOCK_ROWS).min(n_rows);
        let part = task % n_parts * part_len;
        let mut pairs = [RowPair { from: 0, to: 0 }; BLOCK_ROWS];
        for (row, pair) in block.clone().zip(&mut pairs) {
            (pair.from, pair.to) = (row as u32, row as u32);
        }
        // SAFETY: the activations are in the kernel's form; tasks own different products of
        // different rows.
        unsafe {
            weight.rows(0).part(part, part_len).multiply(
                cpu,
                acts,
                &pairs[..block.len()],
                out.start().wrapping_add(part),
                n_out,
                &mut worker.scratch,
            );
        }
        if whole {
            block.for_each(&finish);
        }
    });
    if !whole {
        pool.run(n_rows, |row, _| finish(row));
    }
}
