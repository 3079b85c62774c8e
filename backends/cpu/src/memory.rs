//! Aligned memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer, in bytes: a cache line and a 512-bit vector.
pub(crate) const ALIGN: usize = 64;

/// Numbers of which every bit pattern, zero included, is a value.
///
/// # Safety
/// That is so, and the type needs no drop and no more alignment than [`ALIGN`].
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: integers and floats.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// A zeroed slice of fixed length that starts at a multiple of [`ALIGN`] bytes.
pub(crate) struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory like a `Box<[T]>`.
unsafe impl<T: Plain + Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain + Sync> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// `len` zeros, or `None` when there is no memory for them.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let layout = Self::layout(len)?;
        if layout.size() == 0 {
            return Some(Aligned {
                start: NonNull::dangling(),
                len,
            });
        }
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Aligned {
            start: start.cast(),
            len,
        })
    }

    fn layout(len: usize) -> Option<Layout> {
        let n_bytes = len.checked_mul(size_of::<T>())?;
        Layout::from_size_align(n_bytes, ALIGN).ok()
    }
}

impl<T: Plain> Default for Aligned<T> {
    fn default() -> Self {
        Aligned {
            start: NonNull::dangling(),
            len: 0,
        }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len).filter(|l| l.size() > 0) {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised values that this owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aligned({} x {} bytes)", self.len, size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_any_length_is_zero_and_aligned() {
        for len in [0, 1, 15, 16, 1000] {
            let mut a = Aligned::<f32>::new(len).unwrap();
            assert!(a.len() == len && a.iter().all(|x| *x == 0.0));
            assert!(len == 0 || (a.as_ptr().addr()).is_multiple_of(ALIGN));
            a.fill(1.0);
        }
        assert!(Aligned::<f32>::new(usize::MAX / 2).is_none());
    }
}
