//! Where the choice of a step arrives on the host: its last copy is part of the step, so that whoever waits
//! for the step has it without asking the device again.

use crate::backend::CudaBackend;
use crate::buffer::Buffer;
use crate::driver::Pinned;
use crate::error;

/// A copy of a buffer's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Landed {
    address: u64,
    n_bytes: usize,
    at: usize,
}

/// The memory and what is in it once the step is waited for.
#[derive(Debug, Default)]
pub(crate) struct Landing {
    pub(crate) pinned: Option<Pinned>,
    pub(crate) parts: Vec<Landed>,
}

impl Landing {
    /// Bytes of the device from an address on, if they are here.
    pub(crate) fn find(&self, from: u64, n_bytes: usize) -> Option<&[u8]> {
        let at = locate(&self.parts, from, n_bytes)?;
        Some(&self.pinned.as_ref()?.bytes()[at..at + n_bytes])
    }
}

fn locate(parts: &[Landed], from: u64, n_bytes: usize) -> Option<usize> {
    parts.iter().find_map(|part| {
        let ahead = usize::try_from(from.checked_sub(part.address)?).ok()?;
        (ahead + n_bytes <= part.n_bytes).then_some(part.at + ahead)
    })
}

impl CudaBackend {
    /// Copies the first rows of buffers as a part of the step under way, if there is room.
    pub(crate) fn land(&mut self, buffers: [&Buffer; 3], n_rows: usize) {
        if self.failed.is_some() {
            return;
        }
        let Some(pinned) = &mut self.landing.pinned else {
            return;
        };
        let mut at = 0;
        for buffer in buffers {
            let n_bytes = n_rows * buffer.row_bytes();
            let Some(to) = pinned.bytes_mut().get_mut(at..at + n_bytes) else {
                self.landing.parts.clear();
                return;
            };
            // SAFETY: the buffer has these rows; what is written is read only after the step was waited
            // for, and recordings that write here end before the memory does.
            if let Err(error) = unsafe { self.compute.to_host(to, buffer.address()) } {
                self.failed = Some(error::device(error));
                return;
            }
            let address = buffer.address();
            self.landing.parts.push(Landed {
                address,
                n_bytes,
                at,
            });
            at += n_bytes.next_multiple_of(16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_were_copied_are_found() {
        let parts = [(1000, 64, 0), (5000, 8, 64)].map(|(address, n_bytes, at)| Landed {
            address,
            n_bytes,
            at,
        });
        for (from, n, expected) in [
            (1000, 64, Some(0)),
            (1016, 48, Some(16)),
            (1016, 49, None),
            (999, 1, None),
            (5000, 8, Some(64)),
            (5007, 1, Some(71)),
            (5008, 1, None),
            (0, 1, None),
        ] {
            assert_eq!(locate(&parts, from, n), expected, "{from} {n}");
        }
    }
}
