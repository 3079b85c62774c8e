//! Memory on the device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use ds4_model::{BackendError, ElementType, Place, Shape};

use crate::adapter::{self, Gpu};
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
            None => gpu.check().map(|()| memory),
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
    gpu.finish()
}

impl Gpu {
    /// Waits until everything submitted is done.
    pub(crate) fn finish(&self) -> Result<(), BackendError> {
        self.finish_by(|| {
            let waited = self.device.poll(wgpu::PollType::Wait {
                submission_index: None,
                timeout: None,
            });
            waited.map(drop).map_err(|error| error.to_string())
        })
    }

    /// wgpu panics where a device is lost during a wait; that is an error like any other here.
    fn finish_by(&self, wait: impl FnOnce() -> Result<(), String>) -> Result<(), BackendError> {
        match catch_unwind(AssertUnwindSafe(wait)) {
            Ok(Ok(())) => {}
            Ok(Err(text)) => return Err(self.failed(text)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("its driver failed during a wait");
                let text = format!("{}: {text}", self.capabilities.name);
                adapter::note(&self.failure, text, true);
            }
        }
        self.check()
    }

    /// The first error that no call returned.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        match adapter::locked(&self.failure).as_ref() {
            Some(failure) if failure.is_lost => Err(BackendError::Lost(failure.text.clone())),
            Some(failure) => Err(BackendError::Device(failure.text.clone())),
            None => Ok(()),
        }
    }

    /// What a call failed with: if the device is lost, that.
    pub(crate) fn failed(&self, text: String) -> BackendError {
        match self.check() {
            Err(lost @ BackendError::Lost(_)) => lost,
            _ => BackendError::Device(text),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::WgpuOptions;

    #[test]
    fn a_wait_that_panics_is_a_lost_device() {
        let options = WgpuOptions {
            allow_processor: true,
            plain: true,
            ..WgpuOptions::default()
        };
        let Ok(gpu) = Gpu::open(&options) else {
            return;
        };
        gpu.finish().expect("there is nothing to wait for");
        let slow = gpu.finish_by(|| Err("it takes long".to_owned()));
        assert!(matches!(slow, Err(BackendError::Device(_))), "{slow:?}");
        gpu.finish().expect("the device is there");
        for wait in [true, false] {
            let lost = gpu.finish_by(|| match wait {
                true => panic!("Error in {}: Parent device is lost", "Device::poll"),
                false => Err("later".to_owned()),
            });
            let Err(BackendError::Lost(text)) = lost else {
                panic!("{lost:?}");
            };
            assert!(text.contains("device is lost"), "{text}");
        }
    }
}
