//! Products of weight rows with activation rows, one implementation for each [`Path`].
//!
//! A kernel takes whole rows of one weight type in place, as they lie in the file, and any number
//! of activation rows in the form ([`Form`]) that it wants. The integer sums within a scale are
//! exact on every path; what differs is the order in which the scaled sums are added in f32. A
//! product does not depend on which other rows are computed with it, except where
//! [`Kernel::panel`] is used for many rows.

pub(crate) mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod float;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod scalar;

use ds4_formats::GgmlType;

use crate::path::{Cpu, Path};
pub(crate) use activation::{Form, Order};

/// An activation row and the row of the output that its products belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPair {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// One call of a kernel: every weight row times every activation row of `pairs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    /// Type of the weights.
    pub(crate) ty: GgmlType,
    /// Whole rows of `row_bytes` each.
    pub(crate) weights: &'a [u8],
    pub(crate) row_bytes: usize,
    /// Elements of a row.
    pub(crate) n_in: usize,
    /// Activation rows in the kernel's form, one every `act_stride` bytes.
    pub(crate) acts: &'a [u8],
    pub(crate) act_stride: usize,
    pub(crate) pairs: &'a [RowPair],
    /// The product of weight row `o` with the activation row `pairs[i].from` goes to
    /// `out + pairs[i].to * out_stride + o`.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
}

impl Job<'_> {
    pub(crate) fn n_weights(&self) -> usize {
        self.weights.len() / self.row_bytes
    }

    /// First byte of an activation row.
    #[inline(always)]
    pub(crate) fn act(&self, pair: RowPair) -> *const u8 {
        let at = pair.from as usize * self.act_stride;
        debug_assert!(at < self.acts.len());
        // Wrapping: that the rows are there is what makes the result usable.
        self.acts.as_ptr().wrapping_add(at)
    }

    /// Where the product with weight row `o` goes.
    #[inline(always)]
    pub(crate) fn out(&self, pair: RowPair, o: usize) -> *mut f32 {
        self.out
            .wrapping_add(pair.to as usize * self.out_stride + o)
    }
}

/// Bytes of scratch that kernels need for rows of `n_in` elements.
pub(crate) const fn scratch_bytes(n_in: usize) -> usize {
    n_in.next_multiple_of(512) * 76
}

/// Memory of one thread that kernels unpack weights into, of [`scratch_bytes`].
pub(crate) type Scratch = crate::memory::Aligned<u8>;

/// # Safety
///
/// `Cpu` is the one the kernel was made for; `weights` is whole rows of `n_in` elements of its type;
/// `acts` holds rows of `n_in` in its form wherever `pairs` points; the outputs are valid for
/// writing and nobody else touches them; the scratch has [`scratch_bytes`].
pub(crate) type RowDots = unsafe fn(Cpu, &Job<'_>, &mut Scratch);

/// How one weight type is multiplied on one path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    /// The form of the activations.
    pub(crate) form: Form,
    /// Weight rows that are multiplied together: tasks are multiples of it where they can be.
    pub(crate) step: usize,
    /// Products, fastest for few activation rows.
    pub(crate) row_dots: RowDots,
    /// The same products, faster from some number of activation rows on.
    pub(crate) panel: Option<Panel>,
}

/// A kernel that unpacks many weight rows together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Activation rows from which it is faster.
    pub(crate) min_rows: usize,
    pub(crate) row_dots: RowDots,
}

impl Kernel {
    /// The products for `n_rows` activation rows.
    pub(crate) fn for_rows(&self, n_rows: usize) -> RowDots {
        match self.panel {
            Some(panel) if n_rows >= panel.min_rows => panel.row_dots,
            _ => self.row_dots,
        }
    }

    /// The kernel of a type. Activations are quantised for types with blocks, unless `precise`.
    pub(crate) fn new(cpu: Cpu, ty: GgmlType, precise: bool) -> Kernel {
        let quantised = match cpu.path() {
            _ if precise => None,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => avx512::kernel(ty),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::kernel(ty),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => neon::kernel(ty),
            _ => scalar::kernel(ty),
        };
        quantised.unwrap_or_else(|| float::kernel(ty))
    }
}

#[cfg(test)]
mod tests;
