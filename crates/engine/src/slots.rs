//! Slots: the contract, and its one implementation.

use std::ops::Range;

use ds4_model::session::{RowKind, StoredRows};
use ds4_model::{
    Backend, BackendError, Batch, Frontier, ImportError, MemoryPlan, Network, OutputRow,
    RestoreError, RewindError, Session, SessionShape, SlotState, StepError,
};

/// Rows of a layer: its number, their kind, and which of them.
pub type Group = (usize, RowKind, Range<usize>);

/// The contract between a loaded model and whoever runs it: slots that hold tokens, and
/// steps that append to them.
///
/// A slot holds tokens, from none up to its capacity, and what the network remembers of
/// them. [`Slots::launch`] starts a step that appends a batch's tokens to their slots;
/// [`Slots::wait`] ends it and fetches what its outputs wanted: [`Slots::output`] has it,
/// and [`Slots::read_logits`] the whole row, until the next step is launched. Between the
/// two nothing else is called but what only asks ([`Slots::tokens`], [`Slots::shape`]).
/// A step that fails empties its own slots and no others.
///
/// A slot can be emptied ([`Slots::clear`]), cut back by a few tokens ([`Slots::rewind`],
/// down to [`Slots::rewind_floor`]) or to a place of which a [`Frontier`] was taken
/// ([`Slots::frontier`], [`Slots::frontier_at`], [`Slots::restore`]), and copied
/// ([`Slots::fork`], [`Slots::fork_at`]; [`Slots::carry`] takes a frontier along). Its rows
/// can be read ([`Slots::read_groups`]), and all of it can leave and come back
/// ([`Slots::export`], [`Slots::import`]), on another device too.
///
/// [`Slots::reopen`] gives all slots up and takes others. [`Slots::check_integrity`] says
/// whether what the host believes fits together; it costs little and is asked when nothing
/// runs.
pub trait Slots: Send {
    /// Sizes of the session.
    fn shape(&self) -> &SessionShape;
    /// Tokens in a slot, those of a launched step included.
    fn tokens(&self, slot: usize) -> &[u32];

    /// Starts a step.
    ///
    /// # Panics
    /// If one is under way.
    fn launch(&mut self, batch: &Batch) -> Result<(), StepError>;
    /// Ends the step that is under way, if one is.
    fn wait(&mut self) -> Result<(), StepError>;
    /// What the last step gave for its output number `index`.
    fn output(&self, index: usize) -> OutputRow<'_>;
    /// All logits of that output, `[n_vocab]`.
    fn read_logits(&mut self, index: usize, logits: &mut Vec<f32>) -> Result<(), BackendError>;
    /// A whole step whose outputs all want logits: `[n_outputs, n_vocab]`.
    fn step(&mut self, batch: &Batch) -> Result<&[f32], StepError>;

    /// Empties a slot.
    fn clear(&mut self, slot: usize);
    /// Shortest length that [`Slots::rewind`] can cut a slot back to, other than 0.
    fn rewind_floor(&self, slot: usize) -> usize;
    /// Cuts a slot back to its first `len` tokens.
    fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError>;
    /// Makes `to` a copy of `from`.
    fn fork(&mut self, from: usize, to: usize);
    /// Makes `to` a copy of the frontier's slot as it was there; the other slot stays
    /// as it is. On an error `to` is empty or as it was.
    fn fork_at(&mut self, frontier: &Frontier, to: usize) -> Result<(), RestoreError>;
    /// A frontier of the slot that `to` was copied from, as one of `to`; see
    /// [`Session::carry`].
    fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError>;
    /// Takes what is needed to come back to this length later.
    fn frontier(&mut self, slot: usize) -> Result<Frontier, BackendError>;
    /// The same for an earlier length, no earlier than [`Slots::rewind_floor`].
    fn frontier_at(&mut self, slot: usize, len: usize) -> Result<Frontier, RestoreError>;
    /// Returns a slot to where a frontier was taken.
    fn restore(&mut self, slot: usize, frontier: &Frontier) -> Result<(), RestoreError>;

    /// Rows of a slot in logical order, several groups with one wait: positions of a ring,
    /// numbers of compressed rows, inside what the slot holds.
    fn read_groups(
        &mut self,
        slot: usize,
        groups: &[Group],
    ) -> Result<Vec<StoredRows>, BackendError>;
    /// A slot's state, with the tokens it was made from.
    fn export(&mut self, slot: usize) -> Result<(Vec<u32>, SlotState), BackendError>;
    /// Fills a slot with an exported state.
    fn import(&mut self, slot: usize, tokens: &[u32], state: &SlotState)
    -> Result<(), ImportError>;

    /// Bytes that a session of this shape would take here.
    fn session_bytes(&self, shape: &SessionShape) -> MemoryPlan;
    /// Gives all slots up and then takes those of `shape`. When these are not to be had,
    /// the slots are of the old shape and empty.
    fn reopen(&mut self, shape: SessionShape) -> Result<(), BackendError>;
    /// Says what does not fit together, if anything.
    fn check_integrity(&self) -> Result<(), String>;

    /// Time of every kernel since the last call, as (kernel, launches, milliseconds), longest
    /// first, where the backend measures them.
    fn take_kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        Vec::new()
    }
    /// Bytes a second that the memory of the device gives at most, where it is known.
    fn memory_bandwidth(&self) -> Option<f64> {
        None
    }
}

/// A backend that may know its device and measure its kernels.
pub(crate) trait Measured: Backend {
    fn kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        Vec::new()
    }

    fn bandwidth(&self) -> Option<f64> {
        None
    }
}

impl Measured for ds4_cpu::CpuBackend {}

impl Measured for ds4_model::Reference {}

impl Measured for ds4_cuda::CudaBackend {
    fn kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        self.take_times()
    }

    fn bandwidth(&self) -> Option<f64> {
        self.device().bandwidth
    }
}

/// Bytes that a session of a shape takes on a backend, its workspace as scratch.
pub(crate) fn session_bytes<B: Backend>(backend: &B, shape: &SessionShape) -> MemoryPlan {
    let plan = shape.plan(backend.geometry(), &backend.limits());
    MemoryPlan {
        scratch_bytes: plan.scratch_bytes + backend.workspace_bytes(shape) as usize,
        ..plan
    }
}

/// Backend, weights and session together: the one implementation.
pub(crate) struct Loaded<B: Backend> {
    backend: B,
    network: Network<B::Weight>,
    session: Session<B>,
    tokens: Vec<Vec<u32>>,
    /// The tokens of the step under way, by slot.
    in_flight: Vec<usize>,
}

impl<B: Backend> Loaded<B> {
    pub(crate) fn new(
        mut backend: B,
        network: Network<B::Weight>,
        shape: SessionShape,
    ) -> Result<Loaded<B>, BackendError> {
        let tokens = vec![Vec::new(); shape.n_slots()];
        let session = Session::open(&mut backend, shape)?;
        Ok(Loaded {
            backend,
            network,
            session,
            tokens,
            in_flight: Vec::new(),
        })
    }

    /// Forgets the tokens of slots that a failure emptied.
    fn forget(&mut self, slots: &[usize]) {
        for slot in slots {
            self.tokens[*slot].clear();
        }
    }
}

impl<B> Slots for Loaded<B>
where
    B: Measured + Send,
    B::Buffer: Send,
    B::Weight: Send,
    B::Rows: Send,
{
    fn take_kernel_times(&mut self) -> Vec<(String, u64, f64)> {
        self.backend.kernel_times()
    }

    fn memory_bandwidth(&self) -> Option<f64> {
        self.backend.bandwidth()
    }

    fn shape(&self) -> &SessionShape {
        self.session.shape()
    }

    fn tokens(&self, slot: usize) -> &[u32] {
        &self.tokens[slot]
    }

    fn launch(&mut self, batch: &Batch) -> Result<(), StepError> {
        let slots: Vec<usize> = batch.segments().iter().map(|s| s.slot).collect();
        let launched = self.session.launch(&mut self.backend, &self.network, batch);
        match launched {
            Ok(()) => {
                for segment in batch.segments() {
                    self.tokens[segment.slot].extend_from_slice(&segment.tokens);
                }
                self.in_flight = slots;
            }
            Err(StepError::Backend(_)) => self.forget(&slots),
            Err(_) => {}
        }
        launched
    }

    fn wait(&mut self) -> Result<(), StepError> {
        let slots = std::mem::take(&mut self.in_flight);
        let done = self.session.wait(&mut self.backend);
        if done.is_err() {
            self.forget(&slots);
        }
        done
    }

    fn output(&self, index: usize) -> OutputRow<'_> {
        self.session.output(index)
    }

    fn read_logits(&mut self, index: usize, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        self.session.read_logits(&mut self.backend, index, logits)
    }

    fn step(&mut self, batch: &Batch) -> Result<&[f32], StepError> {
        self.launch(batch)?;
        self.wait()?;
        Ok(self.session.logits())
    }

    fn clear(&mut self, slot: usize) {
        self.session.clear(slot);
        self.tokens[slot].clear();
    }

    fn rewind_floor(&self, slot: usize) -> usize {
        self.session.rewind_floor(slot)
    }

    fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError> {
        self.session.rewind(slot, len)?;
        self.tokens[slot].truncate(len);
        Ok(())
    }

    fn fork(&mut self, from: usize, to: usize) {
        self.session.fork(&mut self.backend, from, to);
        if from != to {
            self.tokens[to] = self.tokens[from].clone();
        }
    }

    fn fork_at(&mut self, frontier: &Frontier, to: usize) -> Result<(), RestoreError> {
        let forked = self.session.fork_at(&mut self.backend, frontier, to);
        // A device that fails half way leaves the target empty.
        if self.session.is_empty(to) {
            self.tokens[to].clear();
        }
        forked?;
        self.tokens[to] = self.tokens[frontier.slot()][..frontier.len].to_vec();
        Ok(())
    }

    fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError> {
        self.session.carry(frontier, to)
    }

    fn frontier(&mut self, slot: usize) -> Result<Frontier, BackendError> {
        self.session.frontier(&mut self.backend, slot)
    }

    fn frontier_at(&mut self, slot: usize, len: usize) -> Result<Frontier, RestoreError> {
        self.session.frontier_at(&mut self.backend, slot, len)
    }

    fn restore(&mut self, slot: usize, frontier: &Frontier) -> Result<(), RestoreError> {
        self.session.restore(&mut self.backend, slot, frontier)?;
        self.tokens[slot].truncate(frontier.len);
        Ok(())
    }

    fn read_groups(
        &mut self,
        slot: usize,
        groups: &[Group],
    ) -> Result<Vec<StoredRows>, BackendError> {
        self.session.read_groups(&mut self.backend, slot, groups)
    }

    fn export(&mut self, slot: usize) -> Result<(Vec<u32>, SlotState), BackendError> {
        let state = self.session.export(&mut self.backend, slot)?;
        Ok((self.tokens[slot].clone(), state))
    }

    fn import(
        &mut self,
        slot: usize,
        tokens: &[u32],
        state: &SlotState,
    ) -> Result<(), ImportError> {
        self.clear(slot);
        if tokens.len() != state.len {
            return Err(ImportError::Mismatch {
                what: "the number of tokens".to_owned(),
                found: tokens.len().to_string(),
                expected: state.len.to_string(),
            });
        }
        self.session.import(&mut self.backend, slot, state)?;
        self.tokens[slot] = tokens.to_vec();
        Ok(())
    }

    fn session_bytes(&self, shape: &SessionShape) -> MemoryPlan {
        session_bytes(&self.backend, shape)
    }

    fn reopen(&mut self, shape: SessionShape) -> Result<(), BackendError> {
        let old = self.session.shape().clone();
        // The smallest session there is holds the place while the old memory goes and the
        // new one is taken.
        let smallest = SessionShape::uniform(1, 1, 1);
        let place = Session::open(&mut self.backend, smallest)?;
        std::mem::replace(&mut self.session, place).close(&mut self.backend);
        let opened = Session::open(&mut self.backend, shape);
        let (session, result) = match opened {
            Ok(session) => (session, Ok(())),
            Err(error) => (Session::open(&mut self.backend, old)?, Err(error)),
        };
        std::mem::replace(&mut self.session, session).close(&mut self.backend);
        self.tokens = vec![Vec::new(); self.session.shape().n_slots()];
        result
    }

    fn check_integrity(&self) -> Result<(), String> {
        for (slot, tokens) in self.tokens.iter().enumerate() {
            let (found, expected) = (self.session.len(slot), tokens.len());
            if found != expected {
                return Err(format!(
                    "slot {slot} holds rows of {found} tokens, expected {expected}"
                ));
            }
        }
        Ok(())
    }
}
