//! Memory of the device, and memory of the host that it reaches.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Context, Result, check};

/// Memory on the device.
pub(crate) struct Memory {
    context: Arc<Context>,
    pub(super) at: sys::CUdeviceptr,
    pub(super) n_bytes: usize,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.n_bytes)
    }
}

impl Memory {
    pub(crate) fn new(context: &Arc<Context>, n_bytes: usize) -> Result<Memory> {
        context.enter()?;
        let mut at = 0;
        // SAFETY: plain device memory, freed when this value is dropped.
        let result = unsafe { sys::cuMemAlloc_v2(&mut at, n_bytes.max(1)) };
        check(result, || format!("cuMemAlloc of {n_bytes} bytes"))?;
        Ok(Memory {
            context: context.clone(),
            at,
            n_bytes,
        })
    }

    /// Its address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.at
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated in `new`, freed once. The driver waits for work that uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.at) };
    }
}

/// Page-locked memory of the host, which the device reads and writes without the processor.
pub(crate) struct Pinned {
    context: Arc<Context>,
    at: *mut u8,
    n_bytes: usize,
}

// SAFETY: the memory is owned by this value and has no thread of its own.
unsafe impl Send for Pinned {}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.n_bytes)
    }
}

impl Pinned {
    pub(crate) fn new(context: &Arc<Context>, n_bytes: usize) -> Result<Pinned> {
        context.enter()?;
        let mut at = ptr::null_mut();
        // SAFETY: freed when this value is dropped.
        let result = unsafe { sys::cuMemHostAlloc(&mut at, n_bytes.max(1), 0) };
        check(result, || format!("cuMemHostAlloc of {n_bytes} bytes"))?;
        // SAFETY: at least `n_bytes` were allocated.
        unsafe { ptr::write_bytes(at.cast::<u8>(), 0, n_bytes) };
        Ok(Pinned {
            context: context.clone(),
            at: at.cast(),
            n_bytes,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length and initialised; the device writes it only between a
        // copy and the wait for it, which the owner does before it reads.
        unsafe { std::slice::from_raw_parts(self.at, self.n_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.n_bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}
