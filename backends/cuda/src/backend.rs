//! The backend: options, memory, recordings. Its ops are in `ops.rs`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use ds4_formats::{GgmlType, Tensor};
use ds4_model::{
    BackendError, ElementType, Geometry, Limits, N_CANDIDATES, Place, ReadPart, Recording,
    Requirement, RowsImage, SessionShape, Shape, StepKey, WeightRole, WritePart,
};

use crate::buffer::{Buffer, Rows};
use crate::decode::{self, Decoder};
use crate::driver::{
    Context, DeviceError, DeviceFacts, Event, Graph, Launch, Memory, Parameter, Pinned, Stream,
};
use crate::error::{self, out_of_memory};
use crate::kernels::{Kernels, Unit};
use crate::load::{Few, Source, Upload, move_all};
use crate::prefill::{self, Workspace};
use crate::times::KernelTimes;
use crate::weight::{Layout, Weight};

/// Most rows of a step that is recorded as a graph; launches of larger ones are a small part of them.
const MAX_GRAPH_ROWS: usize = 64;
/// Recordings kept; the one that was used longest ago makes room.
const MAX_RECORDINGS: usize = 64;
/// Bytes of the pinned memory that reads and writes go through.
const STAGING_BYTES: usize = 16 << 20;
/// Rows of a prefill step.
const PREFILL_ROWS: usize = 2048;
/// Most bytes of the indexer's scores of one step.
const SCORE_BYTES: usize = 512 << 20;
/// Bytes that the driver, the machine code and allocations' edges take beside what is counted.
const RESERVED_BYTES: u64 = 512 << 20;
/// Widest head that the plain attention holds in the shared memory of a block.
pub(crate) const MAX_HEAD_DIM: usize = 4096;
/// Blocks that a row of logits is divided among when its largest are chosen.
pub(crate) const SHARES: usize = 32;
/// Bytes of what they find: four sums, and as many values and ids as there are candidates.
const SHARE_BYTES: usize = 16 + 8 * N_CANDIDATES;

/// Most streams that the plain kernels of hyper-connections take.
pub(crate) const MAX_STREAMS: usize = 16;

/// Addresses of what the shares of rows of logits have found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) sums: u64,
    pub(crate) values: u64,
    pub(crate) ids: u64,
}

/// How a [`CudaBackend`] runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Number of the device.
    pub device: usize,
    /// Where machine code is kept between runs; `None` compiles what is needed in each.
    pub cache: Option<PathBuf>,
    /// Whether to measure every kernel, which turns recordings off.
    pub timed: bool,
    /// Where the kernels for the published geometry take the place of the plain ones.
    pub fast: Fast,
}

/// Parts of the network that have kernels for the published geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fast {
    /// From one sublayer to the next.
    pub turns: bool,
    /// The attention sublayer.
    pub attention: bool,
    /// The experts sublayer.
    pub experts: bool,
    /// Whole steps of a few rows.
    pub steps: bool,
}

impl Fast {
    /// None: the plain kernels only.
    pub const NONE: Fast = Fast {
        turns: false,
        attention: false,
        experts: false,
        steps: false,
    };
}

impl Default for Fast {
    fn default() -> Fast {
        Fast {
            turns: true,
            attention: true,
            experts: true,
            steps: true,
        }
    }
}

/// Why a backend could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// There is no device to use.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernels cannot compute this geometry.
    #[error("the CUDA kernels take {what} up to {limit}, the model has {found}")]
    Geometry {
        /// What.
        what: &'static str,
        /// Largest accepted.
        limit: usize,
        /// In the model.
        found: usize,
    },
    /// A kernel cannot be had.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
}

impl CudaError {
    /// Whether there is simply no such device or driver.
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            CudaError::Device(DeviceError::NoDriver | DeviceError::NoDevice { .. })
        )
    }
}

/// What `begin` decided for the step under way.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// Ops run as they come.
    Direct,
    /// Ops are captured from the first on.
    Record { key: StepKey, capturing: bool },
    /// The recording of this key runs.
    Replay { key: StepKey },
}

#[derive(Debug)]
struct Recorded {
    graph: Graph,
    used: u64,
}

/// The network's operations on an NVIDIA device.
///
/// Ops of small steps are captured into a graph, one for each [`StepKey`], which later steps of the
/// key replay; those of large steps are launched one by one.
#[derive(Debug)]
pub struct CudaBackend {
    pub(crate) geometry: Geometry,
    graphs: HashMap<StepKey, Recorded>,
    n_steps: u64,
    mode: Mode,
    /// Session of the step under way.
    current: Option<u64>,
    /// What went wrong since the last launch.
    failed: Option<BackendError>,
    times: Option<KernelTimes>,
    uploads: Vec<Upload>,
    /// Records of gate and up of a layer whose other half is still to come.
    pair: Option<(usize, Arc<Memory>)>,
    staging: Pinned,
    /// Products of the head's hyper-connection, f32 `[rows, n_hc]`.
    pub(crate) head_products: Option<Memory>,
    n_head_rows: usize,
    /// What the shares of rows of logits have found, and of how many rows there is room.
    shares: Option<(Memory, usize)>,
    /// Of the kernels for the published geometry.
    pub(crate) workspace: Option<Workspace>,
    pub(crate) decoder: Decoder,
    pub(crate) options: CudaOptions,
    kernels: Kernels,
    /// The end of the step that was launched last.
    launched: Event,
    compute: Stream,
    pub(crate) copies: Stream,
    pub(crate) context: Arc<Context>,
}

impl CudaBackend {
    /// A backend for models of this geometry.
    ///
    /// # Errors
    ///
    /// No driver, an old one, no such device, or a geometry beyond the kernels.
    pub fn new(geometry: &Geometry, options: CudaOptions) -> Result<CudaBackend, CudaError> {
        for (what, found, limit) in [
            ("heads of a width", geometry.head_dim, MAX_HEAD_DIM),
            ("index heads of a width", geometry.index_dim, MAX_HEAD_DIM),
            ("streams", geometry.n_hc, MAX_STREAMS),
        ] {
            if found > limit {
                return Err(CudaError::Geometry { what, limit, found });
            }
        }
        let context = Context::new(options.device)?;
        let driver = |e| CudaError::Device(DeviceError::Driver(e));
        let times = match options.timed {
            true => Some(KernelTimes::new(&context).map_err(driver)?),
            false => None,
        };
        Ok(CudaBackend {
            geometry: geometry.clone(),
            graphs: HashMap::new(),
            n_steps: 0,
            mode: Mode::Direct,
            current: None,
            failed: None,
            times,
            uploads: Vec::new(),
            pair: None,
            staging: Pinned::new(&context, STAGING_BYTES).map_err(driver)?,
            head_products: None,
            n_head_rows: 0,
            shares: None,
            workspace: None,
            decoder: Decoder::new(),
            kernels: Kernels::new(&context, options.cache.clone()),
            launched: Event::new(&context, false).map_err(driver)?,
            compute: Stream::new(&context).map_err(driver)?,
            copies: Stream::new(&context).map_err(driver)?,
            options,
            context,
        })
    }

    /// Whether the kernels for the published geometry are used.
    fn is_fast(&self) -> bool {
        self.options.fast != Fast::NONE && prefill::takes(&self.geometry)
    }

    /// What is known of the device.
    pub fn device(&self) -> &DeviceFacts {
        &self.context.facts
    }

    /// Units of kernels that were compiled since it was made.
    pub fn n_compiled(&self) -> usize {
        self.kernels.n_compiled()
    }

    /// Recordings there are.
    pub fn n_recordings(&self) -> usize {
        self.graphs.len()
    }

    /// Time of every kernel since the last call, longest first, when it was made `timed`.
    pub fn take_times(&mut self) -> Vec<(String, u64, f64)> {
        self.times
            .as_mut()
            .map(KernelTimes::take)
            .unwrap_or_default()
    }

    /// Keeps what went wrong for the launch of the step.
    pub(crate) fn fail(&mut self, error: BackendError) {
        self.failed.get_or_insert(error);
    }

    /// Starts a kernel, or records it.
    pub(crate) fn run(
        &mut self,
        unit: &Unit,
        name: &'static str,
        launch: Launch,
        parameters: &[Parameter],
    ) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_run(unit, name, launch, parameters) {
            self.failed = Some(error);
        }
    }

    fn try_run(
        &mut self,
        unit: &Unit,
        name: &'static str,
        launch: Launch,
        parameters: &[Parameter],
    ) -> Result<(), BackendError> {
        let kernel = self.kernels.get(unit, name).map_err(error::kernel)?;
        if let Mode::Record { capturing, .. } = &mut self.mode
            && !*capturing
        {
            self.compute.begin_capture().map_err(error::device)?;
            *capturing = true;
        }
        if let Some(times) = &mut self.times {
            times.before(&self.compute, name).map_err(error::device)?;
        }
        // SAFETY: the callers in `ops.rs` give addresses of buffers and weights whose shapes they
        // compared with what the kernel touches, and which live as long as the recording is used:
        // the session that owns them ends it first.
        unsafe { self.compute.launch(&kernel, launch, parameters) }.map_err(error::device)?;
        if let Some(times) = &mut self.times {
            times.after(&self.compute).map_err(error::device)?;
        }
        Ok(())
    }

    fn is_capturing(&self) -> bool {
        matches!(
            self.mode,
            Mode::Record {
                capturing: true,
                ..
            }
        )
    }

    /// Waits for the step that was launched last, which may not be the one being recorded.
    fn wait_for_step(&self) -> Result<(), BackendError> {
        self.launched.wait().map_err(error::device)?;
        if !self.is_capturing() {
            self.compute.wait().map_err(error::device)?;
        }
        Ok(())
    }

    fn keep(&mut self, key: StepKey, graph: Graph) {
        if self.graphs.len() >= MAX_RECORDINGS
            && let Some(oldest) = self
                .graphs
                .iter()
                .min_by_key(|(_, r)| r.used)
                .map(|(k, _)| *k)
        {
            self.graphs.remove(&oldest);
        }
        let used = self.n_steps;
        self.graphs.insert(key, Recorded { graph, used });
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            prefill_rows: PREFILL_ROWS,
            score_bytes: SCORE_BYTES,
            host_angles: true,
        }
    }

    pub(crate) fn row_class(&self, n_rows: usize) -> usize {
        match n_rows {
            0..=MAX_GRAPH_ROWS => n_rows.next_power_of_two(),
            65..=512 => n_rows.next_multiple_of(64),
            _ => n_rows.next_multiple_of(128),
        }
    }

    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let (free, _) = self.context.memory().ok()?;
        Some(free.saturating_sub(RESERVED_BYTES))
    }

    pub(crate) fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
        let layout = Layout::of(need, ty, self.geometry.n_hc);
        let n_rows = need.ne[1..].iter().product::<u64>();
        let table = match need.role {
            WeightRole::Experts => 8 * self.geometry.n_experts as u64,
            _ => 0,
        };
        layout.n_bytes(ty, need.ne[0], n_rows).next_multiple_of(256) + table
    }

    pub(crate) fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
        let shares = shape.max_outputs * SHARES * SHARE_BYTES;
        let products = (shape.max_rows * self.geometry.n_hc * 4 + shares) as u64;
        match self.is_fast() {
            true => {
                products
                    + prefill::workspace_bytes(shape.max_rows)
                    + decode::workspace_bytes(
                        &self.geometry,
                        shape.bases().last().copied().unwrap_or(0),
                    )
            }
            false => products,
        }
    }

    pub(crate) fn upload(
        &mut self,
        need: &Requirement,
        tensor: Tensor,
    ) -> Result<Weight, BackendError> {
        let (ty, n_hc) = (tensor.ty, self.geometry.n_hc);
        let layout = Layout::of(need, ty, n_hc);
        self.decoder.see_weight(need, layout, ty);
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

    pub(crate) fn forget_recordings(&mut self) {
        self.graphs.clear();
    }

    /// The session of the step that is being recorded.
    pub(crate) fn session(&self) -> Option<u64> {
        self.current
    }

    pub(crate) fn uploads_done(
        &mut self,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), BackendError> {
        self.pair = None;
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
    fn take_shares(&mut self, n_rows: usize) -> Result<(), BackendError> {
        if self.shares.as_ref().is_some_and(|(_, n)| *n >= n_rows) {
            return Ok(());
        }
        self.forget_recordings();
        self.shares = None;
        let n_bytes = n_rows * SHARES * SHARE_BYTES;
        let what = || format!("the largest logits of {n_rows} rows");
        let memory =
            Memory::new(&self.context, n_bytes).map_err(|e| out_of_memory(e, what(), n_bytes))?;
        self.shares = Some((memory, n_rows));
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
        self.copies.wait().map_err(error::device)?;
        drain(&mut waiting, self.staging.bytes());
        Ok(())
    }

    pub(crate) fn copy_rows(&mut self, buffer: &mut Buffer, from: Place, to: Place, n_rows: usize) {
        let n_bytes = n_rows * buffer.row_bytes();
        if n_bytes == 0 {
            return;
        }
        let (from, to) = (buffer.place(from, n_bytes), buffer.place(to, n_bytes));
        // SAFETY: `place` saw that both ranges lie in the buffer, and the trait says that they do
        // not overlap.
        if let Err(error) = unsafe { self.compute.on_device(to, from, n_bytes) } {
            self.failed.get_or_insert(error::device(error));
        }
    }

    pub(crate) fn begin(&mut self, key: &StepKey) -> Recording {
        self.n_steps += 1;
        self.current = Some(key.session);
        self.drop_notes();
        self.settle();
        if let Some(recorded) = self.graphs.get_mut(key) {
            recorded.used = self.n_steps;
            self.mode = Mode::Replay { key: *key };
            return Recording::Replay;
        }
        if key.shape.chooses
            && let Err(error) = self.take_shares(key.shape.n_outputs)
        {
            self.fail(error);
        }
        self.notes_step(key);
        self.mode = if self.times.is_some() || key.shape.n_rows > MAX_GRAPH_ROWS {
            Mode::Direct
        } else {
            Mode::Record {
                key: *key,
                capturing: false,
            }
        };
        Recording::Record
    }

    pub(crate) fn launch(&mut self) -> Result<(), BackendError> {
        // A step without outputs ends with its last layer.
        if let Err(error) = self.finish_notes(None) {
            self.failed.get_or_insert(error);
        }
        let mode = std::mem::replace(&mut self.mode, Mode::Direct);
        let graph = match mode {
            Mode::Record {
                key,
                capturing: true,
            } => {
                let graph = self.compute.end_capture().map_err(error::device);
                // An error of an op says more than that of the capture it broke.
                if let Some(error) = self.failed.take() {
                    return Err(error);
                }
                self.keep(key, graph?);
                Some(key)
            }
            Mode::Replay { key } => Some(key),
            _ => None,
        };
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if let Some(key) = graph {
            let recorded = &self.graphs[&key];
            self.compute
                .replay(&recorded.graph)
                .map_err(error::device)?;
        }
        self.compute.record(&self.launched).map_err(error::device)
    }

    pub(crate) fn wait(&mut self) -> Result<(), BackendError> {
        self.launched.wait().map_err(error::device)?;
        if let Some(times) = &mut self.times {
            times.settle().map_err(error::device)?;
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    pub(crate) fn end_session(&mut self, session: u64) {
        self.graphs.retain(|key, _| key.session != session);
        self.decoder.end_session(session);
    }
}

/// Hands what was copied to those who asked for it.
fn drain(waiting: &mut Vec<(usize, &mut [u8])>, staging: &[u8]) {
    for (at, bytes) in waiting.drain(..) {
        bytes.copy_from_slice(&staging[at..at + bytes.len()]);
    }
}
