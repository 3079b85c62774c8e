//! What moves between host and device: weights, rows of buffers, the numbers of a step.

use std::sync::Arc;

use ds4_formats::Tensor;
use ds4_model::{
    BackendError, ElementType, N_CANDIDATES, Place, ReadPart, Requirement, RowsImage, Shape,
    WeightRole, WritePart,
};

use crate::backend::{CudaBackend, SHARE_BYTES, SHARES, STAGING_BYTES, Shares};
use crate::buffer::{Buffer, Rows};
use crate::driver::{Memory, Pinned};
use crate::error::{self, out_of_memory};
use crate::landing::Landing;
use crate::load::{Few, Source, Upload, move_all};
use crate::prefill::Workspace;
use crate::weight::{Layout, Weight};

impl CudaBackend {
    pub(crate) fn upload(
        &mut self,
        need: &Requirement,
        tensor: Tensor,
    ) -> Result<Weight, BackendError> {
        let (ty, n_hc) = (tensor.ty, self.geometry.n_hc);
        let layout = Layout::of(need, ty, n_hc);
        self.decoder.see_weight(need, layout, ty);
        self.wanted.see_weight(need, layout.code(ty));
        let n_in = tensor.row_len();
        let n_rows = tensor.n_rows();
        let n_bytes = layout.stride_bytes(ty, n_in as u64, n_rows as u64) as usize;
        let memory = match (layout, self.pair.take()) {
            (Layout::Iq2Up, Some((layer, memory)))
                if Some(layer) == need.layer && memory.n_bytes() == n_bytes =>
            {
                memory
            }
            _ => {
                let failed = |e| out_of_memory(e, format!("tensor {}", need.name), n_bytes);
                Arc::new(Memory::new(&self.context, n_bytes).map_err(failed)?)
            }
        };
        if let (Layout::Iq2Gate, Some(layer)) = (layout, need.layer) {
            self.pair = Some((layer, memory.clone()));
        }
        let is_experts = need.role == WeightRole::Experts;
        let n_experts = if is_experts {
            *tensor.ne.last().expect("a shape") as usize
        } else {
            1
        };
        let table = match is_experts {
            true => Some(self.table(need, &memory, n_experts)?),
            false => None,
        };
        let source = match layout {
            Layout::Vector => {
                let floats = tensor.to_f32();
                Source::Bytes(floats.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            _ => Source::Tensor(tensor),
        };
        self.uploads.push(Upload {
            source,
            layout,
            n_in,
            n_rows,
            n_hc,
            memory: memory.clone(),
        });
        Ok(Weight {
            ty,
            layout,
            n_in,
            n_out: n_rows / n_experts,
            memory,
            table,
            n_hc: if layout == Layout::Hc { n_hc } else { 0 },
        })
    }

    /// The table of the addresses of a weight's experts.
    fn table(
        &mut self,
        need: &Requirement,
        memory: &Memory,
        n_experts: usize,
    ) -> Result<Memory, BackendError> {
        let stride = (memory.n_bytes() / n_experts) as u64;
        let addresses: Vec<u8> = (0..n_experts as u64)
            .flat_map(|e| (memory.address() + e * stride).to_le_bytes())
            .collect();
        self.constant(&addresses).map_err(|error| match error {
            BackendError::OutOfMemory { n_bytes, .. } => BackendError::OutOfMemory {
                what: format!("tensor {}", need.name),
                n_bytes,
            },
            error => error,
        })
    }

    /// Bytes, fewer than the staging memory has, in memory of their own.
    pub(crate) fn constant(&mut self, bytes: &[u8]) -> Result<Memory, BackendError> {
        let failed = |e| out_of_memory(e, "a table of addresses".to_owned(), bytes.len());
        let memory = Memory::new(&self.context, bytes.len()).map_err(failed)?;
        self.staging.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the memory has exactly so many bytes, and the staging memory stays until the wait.
        unsafe {
            self.copies
                .to_device(memory.address(), &self.staging.bytes()[..bytes.len()])
        }
        .and_then(|()| self.copies.wait())
        .map_err(error::device)?;
        Ok(memory)
    }

    pub(crate) fn uploads_done(
        &mut self,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), BackendError> {
        self.pair = None;
        self.load_wanted()?;
        let uploads = std::mem::take(&mut self.uploads);
        let mut few = Few {
            stream: &self.copies,
            staging: &mut self.staging,
        };
        move_all(
            &self.context,
            &mut self.kernels,
            &uploads,
            &mut few,
            progress,
        )
    }

    /// Moves weights that were uploaded after the last [`uploads_done`](Self::uploads_done): tests of
    /// single ops do not call it.
    pub(crate) fn settle(&mut self) {
        if !self.uploads.is_empty()
            && let Err(error) = self.uploads_done(&mut |_| ())
        {
            self.failed.get_or_insert(error);
        }
    }

    pub(crate) fn alloc(
        &mut self,
        element: ElementType,
        shape: Shape,
    ) -> Result<Buffer, BackendError> {
        // It may lie where one was whose copy is here.
        self.landing.parts.clear();
        let buffer = Buffer::new(&self.context, element, shape)?;
        self.copies
            .clear(&buffer.memory)
            .and_then(|()| self.copies.wait())
            .map_err(error::device)?;
        Ok(buffer)
    }

    pub(crate) fn alloc_rows(&mut self, capacity: usize) -> Result<Rows, BackendError> {
        if capacity > self.n_head_rows {
            let n_bytes = capacity * self.geometry.n_hc * 4;
            let what = || "products of the head's hyper-connection".to_owned();
            let memory = Memory::new(&self.context, n_bytes)
                .map_err(|e| out_of_memory(e, what(), n_bytes))?;
            // Recordings hold the old address.
            self.graphs.clear();
            self.head_products = Some(memory);
            self.n_head_rows = capacity;
            if self.is_fast() {
                self.workspace = None;
                self.workspace = Some(Workspace::new(&self.context, capacity)?);
            }
        }
        Rows::new(&self.context, &self.geometry, capacity)
    }

    /// Room for the shares of the logits of so many rows, taken before a step is recorded.
    pub(crate) fn take_shares(&mut self, n_rows: usize) -> Result<(), BackendError> {
        if self.shares.as_ref().is_some_and(|(_, n)| *n >= n_rows) {
            return Ok(());
        }
        self.forget_recordings();
        // A step under way may still write into the old ones.
        self.wait_for_step()?;
        self.shares = None;
        self.landing = Landing::default();
        let n_bytes = n_rows * SHARES * SHARE_BYTES;
        let what = || format!("the largest logits of {n_rows} rows");
        let memory =
            Memory::new(&self.context, n_bytes).map_err(|e| out_of_memory(e, what(), n_bytes))?;
        self.shares = Some((memory, n_rows));
        let n_bytes = n_rows * (8 * N_CANDIDATES + 8) + 3 * 16;
        let pinned =
            Pinned::new(&self.context, n_bytes).map_err(|e| out_of_memory(e, what(), n_bytes))?;
        self.landing.pinned = Some(pinned);
        Ok(())
    }

    /// Where the shares of the logits of so many rows are kept; without room the step fails.
    pub(crate) fn shares(&mut self, n_rows: usize) -> Option<Shares> {
        if self.shares.as_ref().is_none_or(|(_, n)| *n < n_rows) {
            let text = format!("candidates of {n_rows} rows in a step that said it has fewer");
            self.fail(BackendError::Device(text));
            return None;
        }
        let (memory, n) = self.shares.as_ref()?;
        let sums = memory.address();
        let values = sums + (n * SHARES * 16) as u64;
        Some(Shares {
            sums,
            values,
            ids: values + (n * SHARES * N_CANDIDATES * 4) as u64,
        })
    }

    pub(crate) fn write_rows(&mut self, rows: &mut Rows, image: &RowsImage) {
        if self.is_capturing() {
            let text = "rows were written after the first op of a recording".to_owned();
            self.failed.get_or_insert(BackendError::Device(text));
            return;
        }
        // The staging memory is free once the last step that read it began; steps are waited for.
        if let Err(error) = self.wait_for_step() {
            self.failed.get_or_insert(error);
            return;
        }
        rows.fill(image);
        // SAFETY: the device memory has room for the whole capacity, and the staging memory is not
        // written again before the step is waited for.
        let copied = unsafe {
            self.compute
                .to_device(rows.address(), &rows.staging.bytes()[..rows.n_bytes()])
        };
        if let Err(error) = copied {
            self.failed.get_or_insert(error::device(error));
        }
    }

    pub(crate) fn write_many(
        &mut self,
        parts: &mut [WritePart<'_, Buffer>],
    ) -> Result<(), BackendError> {
        self.wait_for_step()?;
        self.landing.parts.clear();
        let mut at = 0;
        for part in parts {
            for (place, bytes) in &part.pieces {
                let mut to = part.buffer.place(*place, bytes.len());
                for bytes in bytes.chunks(STAGING_BYTES) {
                    if at + bytes.len() > STAGING_BYTES {
                        self.copies.wait().map_err(error::device)?;
                        at = 0;
                    }
                    let range = at..at + bytes.len();
                    self.staging.bytes_mut()[range.clone()].copy_from_slice(bytes);
                    // SAFETY: `place` saw that the bytes lie in the buffer; the range is not written
                    // again before the wait.
                    unsafe { self.copies.to_device(to, &self.staging.bytes()[range]) }
                        .map_err(error::device)?;
                    to += bytes.len() as u64;
                    at += bytes.len();
                }
            }
        }
        self.copies.wait().map_err(error::device)
    }

    pub(crate) fn read_many(
        &mut self,
        parts: &mut [ReadPart<'_, Buffer>],
    ) -> Result<(), BackendError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.wait_for_step()?;
        // As many parts, and pieces of parts, as the staging memory holds at a time.
        let mut waiting: Vec<(usize, &mut [u8])> = Vec::new();
        let mut at = 0;
        for part in parts {
            let mut from = part.buffer.place(part.at, part.bytes.len());
            if let Some(landed) = self.landing.find(from, part.bytes.len()) {
                part.bytes.copy_from_slice(landed);
                continue;
            }
            for bytes in part.bytes.chunks_mut(STAGING_BYTES) {
                if at + bytes.len() > STAGING_BYTES {
                    self.copies.wait().map_err(error::device)?;
                    drain(&mut waiting, self.staging.bytes());
                    at = 0;
                }
                let n = bytes.len();
                let to = &mut self.staging.bytes_mut()[at..at + n];
                // SAFETY: `place` saw that the bytes lie in the buffer; the staging memory is read
                // after the wait only.
                unsafe { self.copies.to_host(to, from) }.map_err(error::device)?;
                waiting.push((at, bytes));
                from += n as u64;
                at += n;
            }
        }
        if !waiting.is_empty() {
            self.copies.wait().map_err(error::device)?;
            drain(&mut waiting, self.staging.bytes());
        }
        Ok(())
    }

    pub(crate) fn copy_rows(&mut self, buffer: &mut Buffer, from: Place, to: Place, n_rows: usize) {
        let n_bytes = n_rows * buffer.row_bytes();
        if n_bytes == 0 {
            return;
        }
        self.landing.parts.clear();
        let (from, to) = (buffer.place(from, n_bytes), buffer.place(to, n_bytes));
        // SAFETY: `place` saw that both ranges lie in the buffer, and the trait says that they do
        // not overlap.
        if let Err(error) = unsafe { self.compute.on_device(to, from, n_bytes) } {
            self.failed.get_or_insert(error::device(error));
        }
    }
}

/// Hands what was copied to those who asked for it.
fn drain(waiting: &mut Vec<(usize, &mut [u8])>, staging: &[u8]) {
    for (at, bytes) in waiting.drain(..) {
        bytes.copy_from_slice(&staging[at..at + bytes.len()]);
    }
}
