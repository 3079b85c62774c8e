//! Matrix products as parallel regions: activations are brought into the form of the kernels once,
//! then chunks of weight rows are shared out.

use ds4_formats::GgmlType;
use ds4_model::{BackendError, Geometry};

use crate::buffer::Buffer;
use crate::kernels::{Form, Job, Kernel, Order, RowPair, Scratch, scratch_bytes};
use crate::memory::{Aligned, Plain};
use crate::path::Cpu;
use crate::pool::Pool;

/// Weight bytes that are worth a task when memory is the limit.
const TASK_BYTES: usize = 64 << 10;
/// Tasks for every thread, so that a thread that is held up does not hold up the others.
const TASKS_PER_THREAD: usize = 8;
/// Rows of both sides from which reading activations counts as much as reading weights, so that a
/// task has at least as many of each.
const MANY_ROWS: usize = 32;
/// Products of one region.
pub(crate) const MAX_PRODUCTS: usize = 16;

/// Activation rows whose products wait in a thread's memory to be combined.
pub(crate) const BATCH_ROWS: usize = 256;
/// Columns of such products.
pub(crate) const BATCH_COLUMNS: usize = 64;

/// What one thread works in.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    /// Of the kernels.
    pub(crate) scratch: Scratch,
    /// Two batches of products, `[BATCH_ROWS, BATCH_COLUMNS]` each.
    pub(crate) batch: Aligned<f32>,
    /// Pairs of a batch.
    pub(crate) pairs: Vec<RowPair>,
}

impl Worker {
    /// Takes the memory that products of this geometry need.
    pub(crate) fn reserve(&mut self, geometry: &Geometry) -> Result<(), BackendError> {
        let g = geometry;
        let n_in = [
            g.n_hc * g.n_embd,
            g.q_rank,
            g.group_dim(),
            g.n_out_groups * g.out_rank,
            g.expert_dim,
        ]
        .into_iter()
        .fold(0, usize::max);
        grow(&mut self.scratch, scratch_bytes(n_in), "kernel scratch")?;
        let batch_len = 2 * BATCH_ROWS * BATCH_COLUMNS;
        grow(&mut self.batch, batch_len, "a batch of products")?;
        self.pairs.clear();
        self.pairs.reserve(BATCH_ROWS);
        Ok(())
    }
}

/// Makes `memory` at least `len` long; what it held is lost.
pub(crate) fn grow<T: Plain>(
    memory: &mut Aligned<T>,
    len: usize,
    what: &str,
) -> Result<(), BackendError> {
    if memory.len() < len {
        *memory = Aligned::new(len).ok_or_else(|| BackendError::OutOfMemory {
            what: what.to_owned(),
            n_bytes: len.saturating_mul(size_of::<T>()),
        })?;
    }
    Ok(())
}

/// Memory for the activations of one op in the forms that its kernels want.
#[derive(Debug, Default)]
pub(crate) struct Activations(Aligned<u8>);

/// Activation rows in one form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Formed<'a> {
    form: Form,
    bytes: &'a [u8],
    stride: usize,
}

impl<'a> Formed<'a> {
    /// Every `n`-th row from row `first` on.
    pub(crate) fn every(self, n: usize, first: usize) -> Formed<'a> {
        Formed {
            bytes: &self.bytes[first * self.stride..],
            stride: n * self.stride,
            ..self
        }
    }
}

/// The same rows in several forms.
#[derive(Debug)]
pub(crate) struct Forms<'a>([Option<Formed<'a>>; 3]);

impl<'a> Forms<'a> {
    /// The rows as `kernel` wants them.
    pub(crate) fn of(&self, kernel: &Kernel) -> Formed<'a> {
        let formed = self.0.iter().flatten().find(|f| f.form == kernel.form);
        *formed.expect("the op asked for the forms of its kernels")
    }
}

impl Activations {
    /// Takes the memory for `n_rows` rows of this geometry.
    pub(crate) fn reserve(
        &mut self,
        geometry: &Geometry,
        n_rows: usize,
    ) -> Result<(), BackendError> {
        let g = geometry;
        // Of the input and of the query's latent there may be products with all types.
        let row_bytes = [
            all_bytes(g.n_embd),
            all_bytes(g.q_rank),
            g.n_out_groups * most_bytes(g.group_dim()),
            most_bytes(g.n_out_groups * g.out_rank),
            g.n_experts_used * most_bytes(g.expert_dim),
        ]
        .into_iter()
        .fold(0, usize::max);
        let n_bytes = n_rows.saturating_mul(row_bytes);
        grow(&mut self.0, n_bytes, "quantised activations")
    }

    /// Brings the vectors of `width` elements in `x` into the forms that kernels want, each once.
    /// `wanted(i)` says whether vector `i` counts.
    pub(crate) fn form<'a>(
        &'a mut self,
        cpu: Cpu,
        pool: &mut Pool,
        kernels: impl Iterator<Item = &'a Kernel>,
        x: &'a [f32],
        width: usize,
        wanted: impl Fn(usize) -> bool + Sync,
    ) -> Forms<'a> {
        let n = x.len() / width;
        let mut forms = Forms([None; 3]);
        let mut rest: &mut [u8] = &mut self.0;
        for form in kernels.map(|kernel| kernel.form) {
            let Some(place) = (0..3).find(|i| forms.0[*i].is_none_or(|f| f.form == form)) else {
                unreachable!("a path has one form for each kind of activation");
            };
            if forms.0[place].is_some() {
                continue;
            }
            let stride = form.row_bytes(width);
            let bytes: &[u8] = if form == Form::F32 {
                zerocopy::IntoBytes::as_bytes(x)
            } else {
                let (bytes, left) = rest.split_at_mut(n * stride);
                rest = left;
                // A task is at least a few microseconds of work.
                let per_task = (8192 / width).max(1);
                pool.for_chunks(bytes, per_task * stride, |start, chunk| {
                    for (i, out) in chunk.chunks_exact_mut(stride).enumerate() {
                        let row = start / stride + i;
                        if wanted(row) {
                            form.write(cpu, &x[row * width..][..width], out);
                        }
                    }
                });
                bytes
            };
            forms.0[place] = Some(Formed {
                form,
                bytes,
                stride,
            });
        }
        forms
    }
}

/// Bytes of a vector in the larger form.
fn most_bytes(n: usize) -> usize {
    let kinds = [Form::Q8(Order::Natural), Form::Q8K(Order::Natural)];
    kinds
        .map(|form| form.row_bytes(n))
        .into_iter()
        .fold(0, usize::max)
}

/// Bytes of a vector in both forms.
fn all_bytes(n: usize) -> usize {
    2 * most_bytes(n)
}

/// Some rows of a weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightRows<'a> {
    pub(crate) ty: GgmlType,
    pub(crate) kernel: Kernel,
    /// Whole rows of `n_in` elements.
    pub(crate) bytes: &'a [u8],
    pub(crate) row_bytes: usize,
    pub(crate) n_in: usize,
}

impl<'a> WeightRows<'a> {
    /// Rows `first .. first + n`, fewer at the end.
    pub(crate) fn part(self, first: usize, n: usize) -> WeightRows<'a> {
        let end = (first + n).min(self.len());
        WeightRows {
            bytes: &self.bytes[first * self.row_bytes..end * self.row_bytes],
            ..self
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// The products with activation rows `pairs[i].from`: that of row `o` goes to
    /// `out + pairs[i].to * out_stride + o`.
    ///
    /// # Safety
    /// `cpu` is that of the kernel, `acts` is in its form, and the outputs are valid and nobody
    /// else's.
    pub(crate) unsafe fn multiply(
        self,
        cpu: Cpu,
        acts: Formed<'_>,
        pairs: &[RowPair],
        out: *mut f32,
        out_stride: usize,
        scratch: &mut Scratch,
    ) {
        assert!(acts.form == self.kernel.form && scratch.len() >= scratch_bytes(self.n_in));
        let job = Job {
            ty: self.ty,
            weights: self.bytes,
            row_bytes: self.row_bytes,
            n_in: self.n_in,
            acts: acts.bytes,
            act_stride: acts.stride,
            pairs,
            out,
            out_stride,
        };
        // SAFETY: the caller's promise and the assertion.
        unsafe { self.kernel.for_rows(pairs.len())(cpu, &job, scratch) };
    }

    /// Rows of a task of about `task_bytes`, in whole steps of the kernel, and no fewer than
    /// `min_rows`.
    fn task_rows(&self, task_bytes: usize, min_rows: usize) -> usize {
        let step = self.kernel.step.max(min_rows);
        (task_bytes / self.row_bytes).div_ceil(step).max(1) * step
    }
}

/// A matrix times all rows that count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    pub(crate) weights: WeightRows<'a>,
    pub(crate) acts: Formed<'a>,
    /// Where row 0's first product goes.
    pub(crate) out: Outputs,
}

/// The start of outputs that tasks share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outputs {
    pub(crate) start: *mut f32,
    pub(crate) stride: usize,
}

impl Outputs {
    /// The rows of a buffer, which has `n_rows` of them of `n_out` columns.
    pub(crate) fn new(buffer: &mut Buffer, n_rows: usize, n_out: usize) -> Outputs {
        assert!(n_rows <= buffer.n_rows() && n_out == buffer.width());
        Outputs {
            stride: n_out,
            start: buffer.floats_mut().as_mut_ptr(),
        }
    }

    /// From column `first` on.
    pub(crate) fn from(self, first: usize) -> Outputs {
        Outputs {
            start: self.start.wrapping_add(first),
            ..self
        }
    }
}

// SAFETY: only a pointer; writing through it is unsafe and asks for disjointness.
unsafe impl Sync for Outputs {}
// SAFETY: as above.
unsafe impl Send for Outputs {}

/// Multiplies matrices with the rows of `pairs`; up to [`MAX_PRODUCTS`] are one region.
///
/// # Safety
/// As [`WeightRows::multiply`] for each product; outputs of different products do not overlap.
pub(crate) unsafe fn multiply_all<'a>(
    cpu: Cpu,
    pool: &mut Pool,
    workers: &mut [Worker],
    pairs: &[RowPair],
    products: impl Iterator<Item = Product<'a>>,
) {
    let n_wanted = pool.n_threads() * TASKS_PER_THREAD;
    let min_rows = if pairs.len() < MANY_ROWS {
        1
    } else {
        MANY_ROWS
    };
    let mut products = products.peekable();
    while products.peek().is_some() {
        let mut list = [None; MAX_PRODUCTS];
        for (entry, product) in list.iter_mut().zip(products.by_ref()) {
            *entry = Some(product);
        }
        let weights = || list.iter().flatten().map(|product| product.weights);
        let all_bytes: usize = weights().map(|w| w.bytes.len()).sum();
        let task_bytes = (all_bytes / n_wanted).max(TASK_BYTES);
        // ends[i] is one past the last part of product i.
        let mut ends = [0; MAX_PRODUCTS];
        let mut n_parts = 0;
        for (end, weights) in ends.iter_mut().zip(weights()) {
            n_parts += weights
                .len()
                .div_ceil(weights.task_rows(task_bytes, min_rows));
            *end = n_parts;
        }
        // Few parts of many activation rows: the rows are shared out too.
        let n_blocks = n_wanted
            .div_ceil(n_parts)
            .min(pairs.len() / MANY_ROWS)
            .max(1);
        let block_len = pairs.len().div_ceil(n_blocks);
        pool.run_with(workers, n_parts * n_blocks, |task, worker| {
            let (part, block) = (task % n_parts, task / n_parts);
            let i = ends.iter().take_while(|end| **end <= part).count();
            let Some(product) = &list[i] else {
                unreachable!("a part belongs to a product");
            };
            let n = product.weights.task_rows(task_bytes, min_rows);
            let first = n * (part - if i > 0 { ends[i - 1] } else { 0 });
            let out = product.out.from(first);
            let pairs = pairs.chunks(block_len).nth(block).unwrap_or_default();
            // SAFETY: the caller's promise; tasks own different columns or rows.
            unsafe {
                product.weights.part(first, n).multiply(
                    cpu,
                    product.acts,
                    pairs,
                    out.start,
                    out.stride,
                    &mut worker.scratch,
                );
            }
        });
    }
}

/// Rows by the experts they use.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// Grouped by expert, rows ascending.
    uses: Vec<Use>,
    /// Experts that are used, ascending, and where their uses end.
    experts: Vec<(u32, u32)>,
    /// Where the next use of each expert goes.
    next: Vec<u32>,
}

/// A row's use of an expert, the `place`-th among its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) row: u32,
    pub(crate) place: u32,
}

impl Uses {
    /// Takes the memory for `n_rows` rows.
    pub(crate) fn reserve(&mut self, geometry: &Geometry, n_rows: usize) {
        let n_uses = n_rows * geometry.n_experts_used;
        self.uses.reserve(n_uses.saturating_sub(self.uses.len()));
        self.experts.clear();
        self.experts.reserve(geometry.n_experts);
        self.next.clear();
        self.next.reserve(geometry.n_experts);
    }

    /// Groups the choices of the rows of `pairs`.
    pub(crate) fn group<'a>(
        &mut self,
        n_experts: usize,
        pairs: &[RowPair],
        chosen: impl Fn(usize) -> &'a [u32],
    ) {
        self.next.clear();
        self.next.resize(n_experts, 0);
        for pair in pairs {
            for expert in chosen(pair.from as usize) {
                self.next[*expert as usize] += 1;
            }
        }
        self.experts.clear();
        let mut end = 0;
        for (expert, next) in self.next.iter_mut().enumerate() {
            let n = *next;
            *next = end;
            end += n;
            if n > 0 {
                self.experts.push((expert as u32, end));
            }
        }
        self.uses.clear();
        self.uses.resize(end as usize, Use::default());
        for pair in pairs {
            for (place, expert) in chosen(pair.from as usize).iter().enumerate() {
                let at = &mut self.next[*expert as usize];
                self.uses[*at as usize] = Use {
                    row: pair.from,
                    place: place as u32,
                };
                *at += 1;
            }
        }
    }

    /// Number of experts that are used.
    pub(crate) fn n_experts(&self) -> usize {
        self.experts.len()
    }

    /// The `i`-th expert that is used, and its uses.
    pub(crate) fn expert(&self, i: usize) -> (usize, &[Use]) {
        let start = if i > 0 { self.experts[i - 1].1 } else { 0 };
        let (expert, end) = self.experts[i];
        (expert as usize, &self.uses[start as usize..end as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_grouped_by_expert_in_the_order_of_rows() {
        let chosen = [[3, 0], [5, 3], [7, 7], [0, 3]];
        let pairs = [0, 1, 3].map(|r| RowPair { from: r, to: r });
        let mut uses = Uses::default();
        for _ in 0..2 {
            uses.group(6, &pairs, |r| &chosen[r]);
            let found: Vec<(usize, Vec<(u32, u32)>)> = (0..uses.n_experts())
                .map(|i| uses.expert(i))
                .map(|(e, uses)| (e, uses.iter().map(|u| (u.row, u.place)).collect()))
                .collect();
            assert_eq!(
                found,
                [
                    (0, vec![(0, 1), (3, 0)]),
                    (3, vec![(0, 0), (1, 1), (3, 1)]),
                    (5, vec![(1, 0)]),
                ]
            );
        }
    }
}
