//! The backend: memory, rows, and the ops by name.

use std::ops::Range;
use std::sync::Arc;

use ds4_formats::Tensor;
use ds4_model::weights::HyperConnection;
use ds4_model::{
    Backend, BackendError, CompressedRows, ElementType, Geometry, LayerKind, Place, RopeTable,
    Rotation, Routes, RowsImage, Shape, WeightRole,
};

use crate::adapter::Gpu;
use crate::kernels::{BindGroups, Bound, Specialisation};
use crate::memory::{self, Allocation, Buffer};
use crate::record::{self, MAX_GROUPS, Recording};
use crate::weight::Weight;

/// The network's operations on one GPU. Ops are recorded, and run when they are submitted.
#[derive(Debug)]
pub struct WgpuBackend {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) geometry: Geometry,
    pub(crate) recording: Recording,
    pub(crate) bind_groups: BindGroups,
    staging: Option<wgpu::Buffer>,
    /// Words of the rows that are being written.
    words: Vec<u8>,
}

/// The per-step numbers of some rows on the device.
#[derive(Debug)]
pub struct Rows {
    memory: Allocation,
    n_rows: usize,
}

impl Rows {
    pub(crate) fn bind(&self) -> Bound<'_> {
        self.memory.whole()
    }

    /// Rows, padding included.
    pub(crate) fn n(&self) -> u32 {
        self.n_rows as u32
    }
}

/// u32 arrays of a row's numbers, and the inverse temperature.
const ROW_WORDS: usize = 10;

impl WgpuBackend {
    /// A backend for models of this geometry on an open device.
    pub fn new(gpu: &Arc<Gpu>, geometry: &Geometry) -> WgpuBackend {
        WgpuBackend {
            gpu: Arc::clone(gpu),
            geometry: geometry.clone(),
            recording: Recording::default(),
            bind_groups: BindGroups::default(),
            staging: None,
            words: Vec::new(),
        }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Every kernel that ran so far, in its specialisation.
    pub fn specialisations(&self) -> Vec<Specialisation> {
        self.gpu
            .kernels
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .specialisations()
    }

    /// Hands what was recorded to the device.
    fn flush(&mut self) {
        if !self.recording.dispatches.is_empty() {
            let commands = self.recording.encode(&self.gpu);
            self.gpu.queue.submit([commands]);
            self.recording.dispatches.clear();
        }
    }
}

impl Backend for WgpuBackend {
    type Buffer = Buffer;
    type Weight = Weight;
    type Rows = Rows;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn upload(&mut self, role: WeightRole, tensor: Tensor) -> Result<Weight, BackendError> {
        let weight = Weight::new(&self.gpu, role, &tensor)?;
        self.gpu.check()?;
        Ok(weight)
    }

    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Buffer, BackendError> {
        Buffer::new(&self.gpu, element, shape)
    }

    fn alloc_rows(&mut self, capacity: usize) -> Result<Rows, BackendError> {
        let words = ROW_WORDS + RopeTable::COUNT * self.geometry.rope_dim;
        let n_bytes = (4 * words * capacity) as u64;
        Ok(Rows {
            memory: Allocation::new(&self.gpu, "rows", n_bytes)?,
            n_rows: 0,
        })
    }

    fn write_rows(&mut self, rows: &mut Rows, image: &RowsImage) {
        self.flush();
        let window = self.geometry.window as u32;
        self.words.clear();
        let mut put = |values: &mut dyn Iterator<Item = u32>| {
            for value in values {
                self.words.extend_from_slice(&value.to_le_bytes());
            }
        };
        put(&mut image.token.iter().copied());
        put(&mut image.position.iter().copied());
        put(&mut image.slot.iter().copied());
        put(&mut image.slot.iter().map(|_| 0));
        put(&mut image.first_row.iter().copied());
        put(&mut image.end_row.iter().copied());
        put(&mut (0..image.len() as u32).map(|r| r + 1));
        put(&mut image
            .position
            .iter()
            .map(|p| (p + 1).saturating_sub(window)));
        put(&mut image.source.iter().copied());
        put(&mut image.source.iter().map(|_| 1f32.to_bits()));
        put(&mut image.angles.iter().map(|angle| angle.to_bits()));
        rows.n_rows = image.len();
        memory::write(&self.gpu, &rows.memory, 0, &self.words);
    }

    fn write(&mut self, buffer: &mut Buffer, at: Place, bytes: &[u8]) -> Result<(), BackendError> {
        self.flush();
        memory::write(&self.gpu, &buffer.memory, buffer.byte_offset(at), bytes);
        self.gpu.check()
    }

    fn read(&mut self, buffer: &Buffer, at: Place, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.flush();
        let from = buffer
            .memory
            .range(buffer.byte_offset(at), bytes.len() as u64);
        record::read(&self.gpu, &mut self.staging, &mut [(from, bytes)])
    }

    fn copy_rows(&mut self, buffer: &mut Buffer, from: Place, to: Place, n_rows: usize) {
        let words = |bytes: u64| (bytes / 4) as u32;
        let n_words = (n_rows * buffer.width() * buffer.element.n_bytes() / 4) as u32;
        let n_groups = n_words.div_ceil(64).min(MAX_GROUPS);
        self.recording.dispatch(
            &self.gpu,
            &mut self.bind_groups,
            &Specialisation::of("copy_rows"),
            &[(0, buffer.bind())],
            &[
                words(buffer.byte_offset(from)),
                words(buffer.byte_offset(to)),
                n_words,
                n_groups * 64,
            ],
            [n_groups, 1, 1],
        );
    }

    fn submit(&mut self) -> Result<(), BackendError> {
        self.flush();
        self.gpu.check()
    }

    fn embed(&mut self, rows: &Rows, table: &Weight, streams: &mut Buffer) {
        self.record_embed(rows, table, streams);
    }

    fn hc_gates(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &mut Buffer,
    ) {
        self.record_hc_gates(rows, streams, hc, gates);
    }

    fn hc_pre(&mut self, rows: &Rows, streams: &Buffer, gates: &Buffer, x: &mut Buffer) {
        self.record_hc_pre(rows, streams, gates, x);
    }

    fn hc_post(&mut self, rows: &Rows, y: &Buffer, gates: &Buffer, streams: &mut Buffer) {
        self.record_hc_post(rows, y, gates, streams);
    }

    fn hc_head(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        h: &mut Buffer,
    ) {
        self.record_hc_head(rows, streams, hc, h);
    }

    fn select_rows(&mut self, rows: &Rows, x: &Buffer, out: &mut Buffer) {
        self.record_elementwise("select_rows", rows, x, out);
    }

    fn rms_norm(&mut self, rows: &Rows, weight: &Weight, x: &mut Buffer) {
        self.record_rms_norm(rows, weight, x);
    }

    fn matmul(&mut self, rows: &Rows, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        self.record_matmul(rows, weight, weight.n_out, x, out);
    }

    fn matmul_grouped(&mut self, rows: &Rows, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        self.record_matmul(rows, weight, self.geometry.out_rank, x, out);
    }

    fn add(&mut self, rows: &Rows, x: &Buffer, out: &mut Buffer) {
        self.record_elementwise("add", rows, x, out);
    }

    fn head_norm(&mut self, rows: &Rows, head_dim: usize, x: &mut Buffer) {
        self.record_head_norm(rows, head_dim, x);
    }

    fn rope(
        &mut self,
        rows: &Rows,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &mut Buffer,
    ) {
        self.record_rope(rows, table, rotation, head_dim, x);
    }

    fn kv_round(&mut self, rows: &Rows, x: &mut Buffer) {
        self.record_kv_round(rows, x);
    }

    fn index_round(&mut self, rows: &Rows, x: &mut Buffer) {
        self.record_index_round(rows, x);
    }

    fn store_window(&mut self, rows: &Rows, kv: &Buffer, window: &mut Buffer) {
        self.record_store_window(rows, kv, window);
    }

    fn add_position_bias(&mut self, rows: &Rows, ape: &Weight, ratio: usize, gate: &mut Buffer) {
        self.record_add_position_bias(rows, ape, ratio, gate);
    }

    fn pool(
        &mut self,
        rows: &Rows,
        kind: LayerKind,
        kv: &Buffer,
        gate: &Buffer,
        frontier: &Buffer,
        pooled: &mut Buffer,
    ) {
        self.record_pool(rows, kind, kv, gate, frontier, pooled);
    }

    fn store_compressed(&mut self, rows: &Rows, ratio: usize, pooled: &Buffer, cache: &mut Buffer) {
        self.record_store_compressed(rows, ratio, pooled, cache);
    }

    fn store_frontier(&mut self, rows: &Rows, kv: &Buffer, gate: &Buffer, frontier: &mut Buffer) {
        self.record_store_frontier(rows, kv, gate, frontier);
    }

    fn index_scores(
        &mut self,
        rows: &Rows,
        range: Range<usize>,
        iq: &Buffer,
        weights: &Buffer,
        cache: &Buffer,
        scores: &mut Buffer,
    ) {
        self.record_index_scores(rows, range, iq, weights, cache, scores);
    }

    fn top_k(&mut self, rows: &Rows, range: Range<usize>, scores: &Buffer, selected: &mut Buffer) {
        self.record_top_k(rows, range, scores, selected);
    }

    fn attend(
        &mut self,
        rows: &Rows,
        q: &Buffer,
        kv: &Buffer,
        ring: &Buffer,
        compressed: CompressedRows<'_, Buffer>,
        sinks: &Weight,
        out: &mut Buffer,
    ) {
        self.record_attend(rows, q, kv, ring, &compressed, sinks, out);
    }

    fn router_scores(&mut self, rows: &Rows, scores: &mut Buffer) {
        self.record_router_scores(rows, scores);
    }

    fn route_hash(
        &mut self,
        rows: &Rows,
        ids: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        self.record_route("route_hash", rows, ids, scores, routes);
    }

    fn route_top_k(
        &mut self,
        rows: &Rows,
        bias: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        self.record_route("route_top_k", rows, bias, scores, routes);
    }

    fn experts_gate_up(
        &mut self,
        rows: &Rows,
        gate: &Weight,
        up: &Weight,
        clamp: f32,
        x: &Buffer,
        routes: &Routes<Buffer>,
        hidden: &mut Buffer,
    ) {
        self.record_gate_up(rows, gate, up, clamp, x, Some(routes), hidden);
    }

    fn experts_down(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &mut Buffer,
    ) {
        self.record_experts_down(rows, down, hidden, routes, out);
    }

    fn gate_up(
        &mut self,
        rows: &Rows,
        gate: &Weight,
        up: &Weight,
        clamp: f32,
        x: &Buffer,
        hidden: &mut Buffer,
    ) {
        self.record_gate_up(rows, gate, up, clamp, x, None, hidden);
    }
}
