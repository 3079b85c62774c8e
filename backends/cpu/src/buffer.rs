//! Buffers: activations and caches.

use std::ops::Range;

use ds4_model::{BackendError, ElementType, Place, Shape};
use memmap2::MmapMut;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Rows of one element type, `[n_slots, n_rows, width]`.
///
/// The memory is mapped anonymously: it begins at a page, reads as zero, and is taken from the
/// system page by page when it is written. A cache for a long context costs what is used of it.
#[derive(Debug)]
pub struct Buffer {
    element: ElementType,
    shape: Shape,
    n_bytes: usize,
    memory: MmapMut,
}

/// The rows of a slot's cache as they are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cache<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> Cache<'a> {
    /// Row `i` of rows of `width` elements.
    #[inline]
    pub(crate) fn row(self, width: usize, i: usize) -> Cache<'a> {
        match self {
            Cache::F32(rows) => Cache::F32(&rows[i * width..][..width]),
            Cache::Bf16(rows) => Cache::Bf16(&rows[i * width..][..width]),
        }
    }
}

impl Buffer {
    pub(crate) fn new(element: ElementType, shape: Shape) -> Result<Buffer, BackendError> {
        let refused = |n_bytes| BackendError::OutOfMemory {
            what: format!(
                "a buffer of {} x {} x {} elements",
                shape.n_slots, shape.n_rows, shape.width
            ),
            n_bytes,
        };
        let n_bytes = shape
            .n_slots
            .checked_mul(shape.n_rows)
            .and_then(|n| n.checked_mul(shape.width))
            .and_then(|n| n.checked_mul(element.n_bytes()))
            .ok_or_else(|| refused(usize::MAX))?;
        let memory = MmapMut::map_anon(n_bytes.max(1)).map_err(|_| refused(n_bytes))?;
        Ok(Buffer {
            element,
            shape,
            n_bytes,
            memory,
        })
    }

    /// Type of its elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.shape.width
    }

    /// Rows of a slot.
    pub(crate) fn n_rows(&self) -> usize {
        self.shape.n_rows
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[..self.n_bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.n_bytes]
    }

    fn view<T: FromBytes + Immutable>(&self, element: ElementType) -> &[T] {
        assert_eq!(self.element, element, "elements of a buffer");
        <[T]>::ref_from_bytes(self.bytes()).expect("whole elements, aligned to a page")
    }

    fn view_mut<T: FromZeros + FromBytes + IntoBytes>(&mut self, element: ElementType) -> &mut [T] {
        assert_eq!(self.element, element, "elements of a buffer");
        <[T]>::mut_from_bytes(self.bytes_mut()).expect("whole elements, aligned to a page")
    }

    pub(crate) fn floats(&self) -> &[f32] {
        self.view(ElementType::F32)
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        self.view_mut(ElementType::F32)
    }

    pub(crate) fn ids(&self) -> &[u32] {
        self.view(ElementType::U32)
    }

    pub(crate) fn ids_mut(&mut self) -> &mut [u32] {
        self.view_mut(ElementType::U32)
    }

    /// Row `row` of an activation.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.floats()[self.index(0, row)]
    }

    /// The first `n` rows of an activation.
    pub(crate) fn first_rows(&self, n: usize) -> &[f32] {
        &self.floats()[..n * self.width()]
    }

    /// Row `row` of ids.
    pub(crate) fn id_row(&self, row: usize) -> &[u32] {
        &self.ids()[self.index(0, row)]
    }

    /// The elements of a row.
    pub(crate) fn index(&self, slot: usize, row: usize) -> Range<usize> {
        let Shape {
            n_slots,
            n_rows,
            width,
        } = self.shape;
        assert!(slot < n_slots && row < n_rows, "row {row} of slot {slot}");
        let start = (slot * n_rows + row) * width;
        start..start + width
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.shape.width * self.element.n_bytes()
    }

    /// Where a row begins in [`Buffer::bytes`].
    pub(crate) fn byte_offset(&self, at: Place) -> usize {
        self.index(at.slot, at.row).start * self.element.n_bytes()
    }

    /// The rows of a slot.
    pub(crate) fn slot(&self, slot: usize) -> Cache<'_> {
        assert!(slot < self.shape.n_slots, "slot {slot}");
        let len = self.shape.n_rows * self.shape.width;
        match self.element {
            ElementType::Bf16 => {
                let halves: &[u16] = self.view(ElementType::Bf16);
                Cache::Bf16(&halves[slot * len..][..len])
            }
            _ => Cache::F32(&self.floats()[slot * len..][..len]),
        }
    }

    /// The compressed or index rows from row `first` on.
    pub(crate) fn rows_from(&self, first: usize) -> Cache<'_> {
        let at = first * self.shape.width;
        match self.slot(0) {
            Cache::F32(rows) => Cache::F32(&rows[at..]),
            Cache::Bf16(rows) => Cache::Bf16(&rows[at..]),
        }
    }

    pub(crate) fn halves_mut(&mut self) -> &mut [u16] {
        self.view_mut(ElementType::Bf16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_beyond_the_machine_is_refused_with_its_size() {
        let shape = |n_rows| Shape {
            n_slots: 1 << 20,
            n_rows,
            width: 512,
        };
        for n_rows in [1 << 26, usize::MAX] {
            let error = Buffer::new(ElementType::Bf16, shape(n_rows)).expect_err("too large");
            assert!(
                matches!(error, BackendError::OutOfMemory { n_bytes, .. } if n_bytes >= 1 << 56),
                "{error}"
            );
        }
    }
}
