//! The backend: options, memory, and the ops by name.

use ds4_formats::Tensor;
use ds4_model::operands::*;
use ds4_model::weights::{HyperConnection, Requirement};
use ds4_model::{Backend, Geometry, RopeTable, RowsImage};

use crate::buffer::Buffer;
use crate::kernels::RowPair;
use crate::ops;
use crate::ops::attend::Attention;
use crate::ops::choose::Choosing;
use crate::ops::index_scores::Queries;
use crate::path::{Cpu, Path};
use crate::pool;
use crate::products::{Activations, Uses, Worker};
use crate::weight::Weight;

/// How a [`CpuBackend`] runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the caller's included; `None` for as many as the system says this process may use.
    pub n_threads: Option<usize>,
    /// Instructions to use; `None` for the best the machine has.
    pub simd: Option<Path>,
}

/// Why a backend could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The instructions asked for are not there.
    #[error("this machine cannot run {asked} kernels; it has {}", list(.available))]
    Simd {
        /// What was asked for.
        asked: Path,
        /// What there is.
        available: Vec<Path>,
    },
    /// A number of threads that cannot work.
    #[error("found {found} threads, expected 1 to {MAX_THREADS}")]
    Threads {
        /// The number asked for.
        found: usize,
    },
    /// There is no memory for the scratch of the threads.
    #[error("out of memory for the threads' scratch; use fewer threads")]
    OutOfMemory,
}

/// The most threads a backend takes.
pub const MAX_THREADS: usize = 1024;

fn list(paths: &[Path]) -> String {
    let names: Vec<String> = paths.iter().map(Path::to_string).collect();
    names.join(", ")
}

/// The network's operations on the processor. Ops run when they are called.
#[derive(Debug)]
pub struct CpuBackend {
    pub(crate) geometry: Geometry,
    pub(crate) cpu: Cpu,
    pub(crate) pool: pool::Pool,
    /// What each thread works in, taken when rows are allocated.
    pub(crate) workers: Vec<Worker>,
    pub(crate) activations: Activations,
    /// Rows of the current op that are not padding.
    pub(crate) real: Vec<RowPair>,
    /// Rows of the current op by expert.
    pub(crate) uses: Uses,
    /// Products of the head's hyper-connection, `[n_rows, n_hc]`.
    pub(crate) head_products: Vec<f32>,
    /// Scratch of `attend`.
    pub(crate) attention: Attention,
    /// Scratch of `index_scores`.
    pub(crate) queries: Queries,
    /// Scratch of `choose`.
    pub(crate) choosing: Choosing,
}

impl CpuBackend {
    /// A backend for models of this geometry.
    ///
    /// # Errors
    ///
    /// The machine cannot run the path that `options` forces, or the number of threads is 0 or
    /// above [`MAX_THREADS`].
    pub fn new(geometry: &Geometry, options: CpuOptions) -> Result<CpuBackend, CpuError> {
        let path = options.simd.unwrap_or_else(Path::best);
        let Some(cpu) = Cpu::new(path) else {
            return Err(CpuError::Simd {
                asked: path,
                available: Path::ALL
                    .into_iter()
                    .filter(|path| path.is_available())
                    .collect(),
            });
        };
        let n_threads = options.n_threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))
        });
        if !(1..=MAX_THREADS).contains(&n_threads) {
            return Err(CpuError::Threads { found: n_threads });
        }
        let pool = pool::Pool::new(n_threads);
        let attention = Attention::new(geometry, pool.n_threads()).ok_or(CpuError::OutOfMemory)?;
        Ok(CpuBackend {
            geometry: geometry.clone(),
            cpu,
            workers: (0..pool.n_threads()).map(|_| Worker::default()).collect(),
            activations: Activations::default(),
            real: Vec::new(),
            uses: Uses::default(),
            head_products: Vec::new(),
            attention,
            queries: Queries::default(),
            choosing: Choosing::default(),
            pool,
        })
    }

    /// The instructions in use.
    pub fn simd(&self) -> Path {
        self.cpu.path()
    }

    /// Threads in use, the caller's included.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Weight = Weight;
    type Rows = RowsImage;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn upload(&mut self, need: &Requirement, tensor: Tensor) -> Result<Weight, BackendError> {
        Weight::new(self.cpu, need.role, tensor)
    }

    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Buffer, BackendError> {
        Buffer::new(element, shape)
    }

    fn alloc_rows(&mut self, capacity: usize) -> Result<RowsImage, BackendError> {
        self.activations.reserve(&self.geometry, capacity)?;
        self.uses.reserve(&self.geometry, capacity);
        self.queries.reserve(&self.geometry, capacity)?;
        self.choosing.reserve(&self.geometry, capacity)?;
        self.real.reserve(capacity.saturating_sub(self.real.len()));
        for worker in &mut self.workers {
            worker.reserve(&self.geometry)?;
        }
        Ok(RowsImage::with_capacity(&self.geometry, capacity, true))
    }

    fn write_rows(&mut self, rows: &mut RowsImage, image: &RowsImage) {
        rows.copy_from(image);
    }

    fn write_many(&mut self, parts: &mut [WritePart<'_, Buffer>]) -> Result<(), BackendError> {
        for WritePart { buffer, pieces } in parts {
            for (at, bytes) in pieces.iter().filter(|(_, bytes)| !bytes.is_empty()) {
                let start = buffer.byte_offset(*at);
                buffer.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn read_many(&mut self, parts: &mut [ReadPart<'_, Buffer>]) -> Result<(), BackendError> {
        for ReadPart { buffer, at, bytes } in parts.iter_mut().filter(|p| !p.bytes.is_empty()) {
            let start = buffer.byte_offset(*at);
            bytes.copy_from_slice(&buffer.bytes()[start..start + bytes.len()]);
        }
        Ok(())
    }

    fn copy_rows(&mut self, buffer: &mut Buffer, from: Place, to: Place, n_rows: usize) {
        if n_rows > 0 {
            let (from, to) = (buffer.byte_offset(from), buffer.byte_offset(to));
            let n_bytes = n_rows * buffer.row_bytes();
            buffer.bytes_mut().copy_within(from..from + n_bytes, to);
        }
    }

    fn launch(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn embed(&mut self, rows: &RowsImage, table: &Weight, streams: &mut Buffer) {
        ops::embed::embed(self, rows, table, streams);
    }

    fn hc_gates(
        &mut self,
        rows: &RowsImage,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &mut Buffer,
    ) {
        ops::hc_gates::hc_gates(self, rows, streams, hc, gates);
    }

    fn hc_pre(&mut self, rows: &RowsImage, streams: &Buffer, gates: &Buffer, x: &mut Buffer) {
        ops::hc_pre::hc_pre(self, rows, streams, gates, x);
    }

    fn hc_pre_norm(
        &mut self,
        rows: &RowsImage,
        streams: &Buffer,
        entry: Entry<'_, Weight>,
        gates: &mut Buffer,
        x: &mut Buffer,
    ) {
        ops::hc_pre_norm::hc_pre_norm(self, rows, streams, entry, gates, x);
    }

    fn hc_post(&mut self, rows: &RowsImage, y: &Buffer, gates: &Buffer, streams: &mut Buffer) {
        ops::hc_post::hc_post(self, rows, y, gates, streams);
    }

    fn hc_head(
        &mut self,
        rows: &RowsImage,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        h: &mut Buffer,
    ) {
        ops::hc_head::hc_head(self, rows, streams, hc, h);
    }

    fn tap(&mut self, rows: &RowsImage, streams: &Buffer, at: usize, taps: &mut Buffer) {
        ops::tap::tap(self, rows, streams, at, taps);
    }

    fn choose(&mut self, rows: &RowsImage, logits: &Buffer, choice: &mut Choice<Buffer>) {
        ops::choose::choose(self, rows, logits, choice);
    }

    fn select_rows(&mut self, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
        ops::select_rows::select_rows(self, rows, x, out);
    }

    fn rms_norm(&mut self, rows: &RowsImage, weight: &Weight, x: &mut Buffer) {
        ops::rms_norm::rms_norm(self, rows, weight, x);
    }

    fn matmul(&mut self, rows: &RowsImage, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        ops::matmul::matmul(self, rows, weight, x, out);
    }

    fn matmuls(&mut self, rows: &RowsImage, x: &Buffer, products: &mut [(&Weight, &mut Buffer)]) {
        ops::matmul::matmuls(self, rows, x, products);
    }

    fn matmul_grouped(&mut self, rows: &RowsImage, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        ops::matmul_grouped::matmul_grouped(self, rows, weight, x, out);
    }

    fn add(&mut self, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
        ops::add::add(self, rows, x, out);
    }

    fn head_norm(&mut self, rows: &RowsImage, head_dim: usize, x: &mut Buffer) {
        ops::head_norm::head_norm(self, rows, head_dim, x);
    }

    fn rope(
        &mut self,
        rows: &RowsImage,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &mut Buffer,
    ) {
        ops::rope::rope(self, rows, table, rotation, head_dim, x);
    }

    fn q_norm_rope(&mut self, rows: &RowsImage, table: RopeTable, q: &mut Buffer) {
        ops::q_norm_rope::q_norm_rope(self, rows, table, q);
    }

    fn kv_norm_rope(
        &mut self,
        rows: &RowsImage,
        norm: &Weight,
        table: RopeTable,
        rounded: bool,
        kv: &mut Buffer,
    ) {
        ops::kv_norm_rope::kv_norm_rope(self, rows, norm, table, rounded, kv);
    }

    fn kv_round(&mut self, rows: &RowsImage, x: &mut Buffer) {
        ops::kv_round::kv_round(self, rows, x);
    }

    fn index_round(&mut self, rows: &RowsImage, x: &mut Buffer) {
        ops::index_round::index_round(self, rows, x);
    }

    fn store_window(&mut self, rows: &RowsImage, kv: &Buffer, window: &mut Buffer) {
        ops::store_window::store_window(self, rows, kv, window);
    }

    fn add_position_bias(
        &mut self,
        rows: &RowsImage,
        ape: &Weight,
        ratio: usize,
        gate: &mut Buffer,
    ) {
        ops::add_position_bias::add_position_bias(self, rows, ape, ratio, gate);
    }

    fn pool(&mut self, rows: &RowsImage, inputs: Pool<'_, Buffer>, pooled: &mut Buffer) {
        ops::pool::pool(self, rows, &inputs, pooled);
    }

    fn store_compressed(
        &mut self,
        rows: &RowsImage,
        ratio: usize,
        pooled: &Buffer,
        cache: &mut Buffer,
    ) {
        ops::store_compressed::store_compressed(self, rows, ratio, pooled, cache);
    }

    fn store_frontier(
        &mut self,
        rows: &RowsImage,
        kv: &Buffer,
        gate: &Buffer,
        frontier: &mut Buffer,
    ) {
        ops::store_frontier::store_frontier(self, rows, kv, gate, frontier);
    }

    fn compress(&mut self, rows: &RowsImage, operands: Compress<'_, Buffer, Weight>) {
        ops::compress::compress(self, rows, operands);
    }

    fn index_scores(
        &mut self,
        rows: &RowsImage,
        inputs: IndexScores<'_, Buffer>,
        scores: &mut Buffer,
    ) {
        ops::index_scores::index_scores(self, rows, &inputs, scores);
    }

    fn top_k(&mut self, rows: &RowsImage, tile: ScoreTile, scores: &Buffer, selected: &mut Buffer) {
        ops::top_k::top_k(self, rows, &tile, scores, selected);
    }

    fn attend(&mut self, rows: &RowsImage, inputs: Attend<'_, Buffer, Weight>, out: &mut Buffer) {
        ops::attend::attend(self, rows, &inputs, out);
    }

    fn router_scores(&mut self, rows: &RowsImage, scores: &mut Buffer) {
        ops::router_scores::router_scores(self, rows, scores);
    }

    fn route_hash(
        &mut self,
        rows: &RowsImage,
        ids: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        ops::route_hash::route_hash(self, rows, ids, scores, routes);
    }

    fn route_top_k(
        &mut self,
        rows: &RowsImage,
        bias: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        ops::route_top_k::route_top_k(self, rows, bias, scores, routes);
    }

    fn experts_gate_up(
        &mut self,
        rows: &RowsImage,
        inputs: ExpertsGateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        ops::experts_gate_up::experts_gate_up(self, rows, &inputs, hidden);
    }

    fn experts_down(
        &mut self,
        rows: &RowsImage,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &mut Buffer,
    ) {
        ops::experts_down::experts_down(self, rows, down, hidden, routes, out);
    }

    fn gate_up(
        &mut self,
        rows: &RowsImage,
        inputs: GateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        ops::gate_up::gate_up(self, rows, &inputs, hidden);
    }
}
