//! Buffers and the per-step numbers on the device.

use ds4_model::{BackendError, ElementType, Geometry, Place, RowsImage, Shape};

use crate::driver::{Argument, Context, Memory, Pinned};
use crate::error::out_of_memory;
use std::sync::Arc;

/// Memory of the device with a shape.
#[derive(Debug)]
pub struct Buffer {
    pub(crate) element: ElementType,
    pub(crate) shape: Shape,
    pub(crate) memory: Memory,
}

impl Buffer {
    pub(crate) fn new(
        context: &Arc<Context>,
        element: ElementType,
        shape: Shape,
    ) -> Result<Buffer, BackendError> {
        let what = || {
            format!(
                "a buffer of {} x {} x {} elements",
                shape.n_slots, shape.n_rows, shape.width
            )
        };
        let n_bytes = shape
            .n_slots
            .checked_mul(shape.n_rows)
            .and_then(|n| n.checked_mul(shape.width))
            .and_then(|n| n.checked_mul(element.n_bytes()))
            .filter(|n| *n <= isize::MAX as usize)
            .ok_or_else(|| BackendError::OutOfMemory {
                what: what(),
                n_bytes: usize::MAX,
            })?;
        let memory =
            Memory::new(context, n_bytes).map_err(|e| out_of_memory(e, what(), n_bytes))?;
        Ok(Buffer {
            element,
            shape,
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

    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    pub(crate) fn width(&self) -> usize {
        self.shape.width
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.shape.width * self.element.n_bytes()
    }

    /// Address of the rows from `at` on, of which `n_bytes` are wanted.
    ///
    /// # Panics
    /// When they are not all there.
    pub(crate) fn place(&self, at: Place, n_bytes: usize) -> u64 {
        assert!(
            at.slot < self.shape.n_slots && at.row <= self.shape.n_rows,
            "row {} of slot {} in {:?}",
            at.row,
            at.slot,
            self.shape
        );
        let start = (at.slot * self.shape.n_rows + at.row) * self.row_bytes();
        assert!(
            start + n_bytes <= self.memory.n_bytes(),
            "{n_bytes} bytes from row {} of slot {} in {:?}",
            at.row,
            at.slot,
            self.shape
        );
        self.address() + start as u64
    }

    /// The form in which kernels take a cache.
    pub(crate) fn cache(&self) -> CacheView {
        CacheView {
            data: self.address(),
            is_bf16: u32::from(self.element == ElementType::Bf16),
            n_rows: self.shape.n_rows as u32,
            width: self.shape.width as u32,
            reserved: 0,
        }
    }
}

/// `Cache` of `common.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct CacheView {
    data: u64,
    is_bf16: u32,
    n_rows: u32,
    width: u32,
    reserved: u32,
}

impl Argument for CacheView {}

/// `Rows` of `common.cuh`: addresses of the arrays of a [`RowsImage`], in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RowsView {
    pub(crate) ids: [u64; ds4_model::N_ROW_IDS],
    pub(crate) inv_temperature: u64,
    pub(crate) angles: u64,
}

impl Argument for RowsView {}

impl RowsView {
    /// Address of the slots.
    pub(crate) fn slot(&self) -> u64 {
        self.ids[2]
    }
}

/// Words between the arrays of so many rows and their angles.
fn n_padding(n_rows: usize) -> usize {
    (n_rows * (ds4_model::N_ROW_IDS + 1)).wrapping_neg() % 4
}

/// A [`RowsImage`] on the device, with the pinned memory it comes from.
#[derive(Debug)]
pub struct Rows {
    capacity: usize,
    n_rows: usize,
    angle_len: usize,
    memory: Memory,
    pub(crate) staging: Pinned,
}

impl Rows {
    pub(crate) fn new(
        context: &Arc<Context>,
        geometry: &Geometry,
        capacity: usize,
    ) -> Result<Rows, BackendError> {
        let n_bytes = RowsImage::n_bytes(geometry, capacity) + 16;
        let what = || format!("the numbers of {capacity} rows");
        let failed = |e| out_of_memory(e, what(), n_bytes);
        Ok(Rows {
            capacity,
            n_rows: 0,
            angle_len: ds4_model::RopeTable::COUNT * geometry.rope_dim,
            memory: Memory::new(context, n_bytes).map_err(failed)?,
            staging: Pinned::new(context, n_bytes).map_err(failed)?,
        })
    }

    /// Rows of the step.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Bytes of the part that a step of the current number of rows uses.
    pub(crate) fn n_bytes(&self) -> usize {
        self.offset_of_angles() + self.n_rows * self.angle_len * 4
    }

    /// Kernels load 16 bytes of angles at a time.
    fn offset_of_angles(&self) -> usize {
        (self.n_rows * 4 * (ds4_model::N_ROW_IDS + 1)).next_multiple_of(16)
    }

    /// Arrays lie one after another, each as long as the step has rows, the angles at a multiple of 16
    /// bytes, so that one copy of their bytes moves them all.
    pub(crate) fn fill(&mut self, image: &RowsImage) {
        assert!(image.len() <= self.capacity, "{} rows", image.len());
        self.n_rows = image.len();
        let mut out = self.staging.bytes_mut();
        let mut put = |words: &mut dyn Iterator<Item = u32>| {
            for word in words {
                let (to, rest) = std::mem::take(&mut out).split_at_mut(4);
                to.copy_from_slice(&word.to_le_bytes());
                out = rest;
            }
        };
        for ids in image.ids() {
            put(&mut ids.iter().copied());
        }
        put(&mut image.inv_temperature.iter().map(|x| x.to_bits()));
        let n_padding = n_padding(image.len());
        put(&mut std::iter::repeat_n(0, n_padding));
        put(&mut image.angles.iter().map(|x| x.to_bits()));
    }

    pub(crate) fn view(&self) -> RowsView {
        let array = |i: usize| self.address() + (i * self.n_rows * 4) as u64;
        RowsView {
            ids: std::array::from_fn(array),
            inv_temperature: array(ds4_model::N_ROW_IDS),
            angles: self.address() + self.offset_of_angles() as u64,
        }
    }
}
