//! Memory on the device.

use std::sync::atomic::{AtomicU64, Ordering};

use ds4_model::{BackendError, ElementType, Place, Shape};

use crate::adapter::Gpu;
use crate::bound::Bound;

/// Bytes on the device. Its number is never used again, so that it can stand in keys.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) id: u64,
    pub(crate) buffer: wgpu::Buffer,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Allocation {
    /// Zeroed bytes.
    pub(crate) fn new(gpu: &Gpu, what: &str, n_bytes: u64) -> Result<Allocation, BackendError> {
        let out_of_memory = |why: String| BackendError::OutOfMemory {
            what: format!("{what}{why}"),
            n_bytes: n_bytes as usize,
        };
        if n_bytes > gpu.capabilities.max_buffer_bytes {
            return Err(out_of_memory(format!(
                " (a buffer of this adapter has at most {} bytes)",
                gpu.capabilities.max_buffer_bytes
            )));
        }
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let memory = Allocation::unchecked(gpu, what, n_bytes);
        match pollster::block_on(scope.pop()) {
            Some(_) => Err(out_of_memory(String::new())),
            None => Ok(memory),
        }
    }

    /// Zeroed bytes; when there is no room, the device fails.
    pub(crate) fn unchecked(gpu: &Gpu, what: &str, n_bytes: u64) -> Allocation {
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: n_bytes.next_multiple_of(4).max(4),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Allocation {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            buffer,
        }
    }

    pub(crate) fn whole(&self) -> Bound<'_> {
        self.range(0, 0)
    }

    pub(crate) fn range(&self, offset: u64, n_bytes: u64) -> Bound<'_> {
        Bound {
            id: self.id,
            buffer: &self.buffer,
            offset,
            n_bytes,
        }
    }
}

/// Puts bytes into a buffer before the next submission.
pub(crate) fn write(gpu: &Gpu, memory: &Allocation, at: u64, bytes: &[u8]) {
    if bytes.len().is_multiple_of(4) {
        if !bytes.is_empty() {
            gpu.queue.write_buffer(&memory.buffer, at, bytes);
        }
    } else {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(4), 0);
        gpu.queue.write_buffer(&memory.buffer, at, &padded);
    }
}

/// Waits until everything submitted is done, so that its staging memory is free.
pub(crate) fn drain(gpu: &Gpu) -> Result<(), BackendError> {
    gpu.queue.submit([]);
    gpu.device
        .poll(wgpu::PollType::Wait {
            submission_index: None,
            timeout: None,
        })
        .map_err(|error| BackendError::Device(error.to_string()))?;
    gpu.check()
}

impl Gpu {
    /// The first error that no call returned.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        let failure = self
            .failure
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match failure.as_ref() {
            Some(text) => Err(BackendError::Device(text.clone())),
            None => Ok(()),
        }
    }
}

/// Rows of one element type, `[n_slots, n_rows, width]`.
#[derive(Debug)]
pub struct Buffer {
    pub(crate) memory: Allocation,
    pub(crate) element: ElementType,
    pub(crate) shape: Shape,
}

impl Buffer {
    pub(crate) fn new(
        gpu: &Gpu,
        element: ElementType,
        shape: Shape,
    ) -> Result<Buffer, BackendError> {
        let n_bytes = [shape.n_rows, shape.width, element.n_bytes()]
            .iter()
            .try_fold(shape.n_slots as u64, |n, f| n.checked_mul(*f as u64))
            .unwrap_or(u64::MAX);
        let what = || {
            format!(
                "a buffer of {} x {} x {}",
                shape.n_slots, shape.n_rows, shape.width
            )
        };
        let most = gpu.capabilities.max_binding_bytes;
        if n_bytes > most {
            return Err(BackendError::OutOfMemory {
                what: format!("{} (this adapter binds at most {most} bytes)", what()),
                n_bytes: n_bytes as usize,
            });
        }
        Ok(Buffer {
            memory: Allocation::new(gpu, &what(), n_bytes)?,
            element,
            shape,
        })
    }

    pub(crate) fn bind(&self) -> Bound<'_> {
        self.memory.whole()
    }

    pub(crate) fn byte_offset(&self, at: Place) -> u64 {
        let row = at.slot * self.shape.n_rows + at.row;
        (row * self.shape.width * self.element.n_bytes()) as u64
    }

    pub(crate) fn is_bf16(&self) -> bool {
        self.element == ElementType::Bf16
    }

    pub(crate) fn width(&self) -> usize {
        self.shape.width
    }
}
