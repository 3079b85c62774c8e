//! What lets dispatches run side by side. wgpu parts two of them with a barrier when the second uses a
//! buffer that was written, or writes one that was used; so results of dispatches that stand together
//! go to buffers that the step has not used before, and the first of them is bound to everything
//! that the others wait for.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_model::{ElementType, Shape};

use crate::backend::WgpuBackend;
use crate::few::FEW_ROWS;
use crate::memory::{Allocation, Buffer};

/// Buffers of few rows, each used at one place of a step, by width.
#[derive(Debug, Default)]
pub(crate) struct Own {
    buffers: HashMap<usize, Vec<Arc<Buffer>>>,
    taken: HashMap<usize, usize>,
}

impl Own {
    /// Another step begins, which follows those before it.
    pub(crate) fn rewind(&mut self) {
        self.taken.clear();
    }
}

impl WgpuBackend {
    /// A buffer of few rows as wide as another, which nothing else in this step uses.
    pub(crate) fn own(&mut self, like: &Buffer) -> Arc<Buffer> {
        let width = like.width();
        let place = self.own.taken.entry(width).or_default();
        let buffers = self.own.buffers.entry(width).or_default();
        if buffers.len() == *place {
            // Some kilobytes: when there is no memory for them, the step fails with the device.
            let n_bytes = FEW_ROWS as usize * width * ElementType::F32.n_bytes();
            buffers.push(Arc::new(Buffer {
                memory: Allocation::unchecked(&self.gpu, "a step's own rows", n_bytes as u64),
                element: ElementType::F32,
                shape: Shape::rows(FEW_ROWS as usize, width),
            }));
        }
        *place += 1;
        Arc::clone(&buffers[*place - 1])
    }

    /// The next dispatch waits for these rows and their codes.
    pub(crate) fn fence(&mut self, buffer: &Buffer) {
        self.fences.push(buffer.memory.whole().held());
        if let Some(codes) = self.codes.get(&buffer.memory.id) {
            let parts = [&codes.codes, &codes.scales, &codes.squares];
            self.fences.extend(parts.map(|part| part.whole().held()));
        }
    }
}
