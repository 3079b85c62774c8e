//! A model on some backend, with the backend's types hidden: the engine is
//! chosen when the program runs.

use std::ops::Range;

use ds4_model::session::{RowKind, StoredRows};
use ds4_model::{
    Backend, BackendError, Batch, Frontier, ImportError, Network, RestoreError, RewindError,
    Session, SessionShape, SlotState, StepError,
};

/// What the engine needs of a loaded model.
pub(crate) trait Runner: Send {
    fn step(&mut self, batch: &Batch) -> Result<&[f32], StepError>;
    fn len(&self, slot: usize) -> usize;
    fn clear(&mut self, slot: usize);
    fn fork(&mut self, from: usize, to: usize);
    fn fork_at(&mut self, frontier: &Frontier, to: usize) -> Result<(), RestoreError>;
    fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError>;
    fn rewind_floor(&self, slot: usize) -> usize;
    fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError>;
    fn frontier(&mut self, slot: usize) -> Result<Frontier, BackendError>;
    fn frontier_at(&mut self, slot: usize, len: usize) -> Result<Frontier, RestoreError>;
    fn restore(&mut self, slot: usize, frontier: &Frontier) -> Result<(), RestoreError>;
    fn read_rows(
        &mut self,
        slot: usize,
        layer: usize,
        kind: RowKind,
        range: Range<usize>,
    ) -> Result<StoredRows, BackendError>;
    fn export(&mut self, slot: usize) -> Result<SlotState, BackendError>;
    fn import(&mut self, slot: usize, state: &SlotState) -> Result<(), ImportError>;
    fn take_kernel_times(&mut self) -> Vec<(String, u64, f64)>;
    fn memory_bandwidth(&self) -> Option<f64>;
}

/// A backend that may measure its kernels.
pub(crate) trait KernelTimes: Backend {
    /// (kernel, launches, milliseconds) since the last call, longest first.
    fn take_kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        Vec::new()
    }

    /// Bytes a second that the device's memory gives at most, where it is known.
    fn memory_bandwidth(&self) -> Option<f64> {
        None
    }
}

impl KernelTimes for ds4_cpu::CpuBackend {}

impl KernelTimes for ds4_model::Reference {}

impl KernelTimes for ds4_cuda::CudaBackend {
    fn take_kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        self.take_times()
    }

    fn memory_bandwidth(&self) -> Option<f64> {
        self.device().bandwidth
    }
}

/// Backend, weights and session together.
pub(crate) struct Loaded<B: Backend> {
    backend: B,
    network: Network<B::Weight>,
    session: Session<B>,
}

impl<B: Backend> Loaded<B> {
    pub(crate) fn new(
        mut backend: B,
        network: Network<B::Weight>,
        shape: SessionShape,
    ) -> Result<Loaded<B>, BackendError> {
        let session = Session::open(&mut backend, shape)?;
        Ok(Loaded {
            backend,
            network,
            session,
        })
    }
}

impl<B> Runner for Loaded<B>
where
    B: KernelTimes + Send,
    B::Buffer: Send,
    B::Weight: Send,
    B::Rows: Send,
{
    fn step(&mut self, batch: &Batch) -> Result<&[f32], StepError> {
        self.session.step(&mut self.backend, &self.network, batch)
    }

    fn len(&self, slot: usize) -> usize {
        self.session.len(slot)
    }

    fn clear(&mut self, slot: usize) {
        self.session.clear(slot);
    }

    fn fork(&mut self, from: usize, to: usize) {
        self.session.fork(&mut self.backend, from, to);
    }

    fn fork_at(&mut self, frontier: &Frontier, to: usize) -> Result<(), RestoreError> {
        self.session.fork_at(&mut self.backend, frontier, to)
    }

    fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError> {
        self.session.carry(frontier, to)
    }

    fn rewind_floor(&self, slot: usize) -> usize {
        self.session.rewind_floor(slot)
    }

    fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError> {
        self.session.rewind(slot, len)
    }

    fn frontier(&mut self, slot: usize) -> Result<Frontier, BackendError> {
        self.session.frontier(&mut self.backend, slot)
    }

    fn frontier_at(&mut self, slot: usize, len: usize) -> Result<Frontier, RestoreError> {
        self.session.frontier_at(&mut self.backend, slot, len)
    }

    fn restore(&mut self, slot: usize, frontier: &Frontier) -> Result<(), RestoreError> {
        self.session.restore(&mut self.backend, slot, frontier)
    }

    fn read_rows(
        &mut self,
        slot: usize,
        layer: usize,
        kind: RowKind,
        range: Range<usize>,
    ) -> Result<StoredRows, BackendError> {
        self.session
            .read_rows(&mut self.backend, slot, layer, kind, range)
    }

    fn export(&mut self, slot: usize) -> Result<SlotState, BackendError> {
        self.session.export(&mut self.backend, slot)
    }

    fn import(&mut self, slot: usize, state: &SlotState) -> Result<(), ImportError> {
        self.session.import(&mut self.backend, slot, state)
    }

    fn take_kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        self.backend.take_kernel_times()
    }

    fn memory_bandwidth(&self) -> Option<f64> {
        self.backend.memory_bandwidth()
    }
}
