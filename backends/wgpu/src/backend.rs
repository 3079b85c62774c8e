//! The backend: memory, rows, and the ops by name.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_formats::{GgmlType, Tensor};
use ds4_model::weights::HyperConnection;
use ds4_model::{
    Attend, AttentionSublayer, Backend, BackendError, Choice, Compress, ElementType, Entry,
    ExpertsGateUp, ExpertsSublayer, GateUp, Geometry, IndexScores, Limits, Place, Pool, ReadPart,
    Requirement, RopeTable, Rotation, Routes, RowsImage, ScoreTile, SessionShape, Shape, StepKey,
    Turn, WritePart,
};

use crate::adapter::Gpu;
use crate::attend::SPLITS;
use crate::bound::{BindGroups, Bound, Held};
use crate::few::{Codes, FEW_ROWS, FewCompress, Product};
use crate::few_experts::Routing;
use crate::joined::{JOINED_ROWS, Last};
use crate::kernels::Specialisation;
use crate::many::{self, ManyWorkspace};
use crate::memory::{self, Allocation, Buffer};
use crate::own::Own;
use crate::record::{self, MAX_GROUPS, Recording};
use crate::weight::{self, Weight};

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
    /// The step that is being recorded or replayed.
    key: Option<StepKey>,
    /// Steps that were launched.
    kept: HashMap<StepKey, Recording>,
    /// 8-bit codes beside buffers of few rows, by buffer.
    pub(crate) codes: HashMap<u64, Arc<Codes>>,
    /// The buffer whose codes the last turn left.
    pub(crate) fresh: Option<u64>,
    /// The buffer whose rows the workspace of many rows has in f16.
    pub(crate) halved: Option<u64>,
    /// Workspace of steps of many rows.
    pub(crate) many: Option<ManyWorkspace>,
    /// Whether only kernels that every adapter runs are used.
    pub(crate) plain: bool,
    /// Rows that `turn_sums` has room for.
    pub(crate) turn_rows: usize,
    /// Partial sums of turns.
    pub(crate) turn_sums: Arc<Allocation>,
    /// Sums, and maxima and weights, of split attention.
    pub(crate) split_sums: Arc<Allocation>,
    pub(crate) split_stats: Arc<Allocation>,
    /// Buffers of single places in a step.
    pub(crate) own: Own,
    /// What the next dispatch waits for beside its own buffers.
    pub(crate) fences: Vec<Held>,
    /// The product that was recorded last, if a turn may become part of it.
    pub(crate) last: Option<Last>,
    /// Bound where a kernel uses nothing.
    pub(crate) unused: Arc<Allocation>,
    /// The step that is likely to come next.
    encoded: Option<(StepKey, wgpu::CommandBuffer)>,
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

/// Partial sums of a turn: products with 24 rows, and ten of two streams.
const TURN_SUMS: usize = 34;

/// Numbers of the partial sums of `n_rows` rows.
fn turn_sums(geometry: &Geometry, n_rows: usize) -> usize {
    n_rows * geometry.n_embd.div_ceil(JOINED_ROWS) * TURN_SUMS
}

/// Rows of a prefill step: 48 for each expert.
const PREFILL_ROWS: usize = 2048;

impl WgpuBackend {
    /// A backend for models of this geometry on an open device.
    pub fn new(gpu: &Arc<Gpu>, geometry: &Geometry) -> WgpuBackend {
        let heads = SPLITS * geometry.n_heads;
        let make = |what: &str, n_floats: usize| {
            Arc::new(Allocation::unchecked(gpu, what, 4 * n_floats as u64))
        };
        WgpuBackend {
            codes: HashMap::new(),
            own: Own::default(),
            fences: Vec::new(),
            last: None,
            unused: make("nothing", 4),
            fresh: None,
            halved: None,
            many: None,
            plain: gpu.plain,
            turn_rows: FEW_ROWS as usize,
            turn_sums: make("sums of turns", turn_sums(geometry, FEW_ROWS as usize)),
            split_sums: make("sums of attention", heads * geometry.head_dim),
            split_stats: make("weights of attention", 2 * heads),
            gpu: Arc::clone(gpu),
            geometry: geometry.clone(),
            recording: Recording::default(),
            bind_groups: BindGroups::default(),
            staging: None,
            words: Vec::new(),
            key: None,
            kept: HashMap::new(),
            encoded: None,
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

    /// Runs the recorded steps of so many rows once more with a timestamp after each stage:
    /// (its kernels, nanoseconds) in order. What the caches hold afterwards is unspecified. Empty where
    /// the adapter has no timestamps, or no such step was recorded.
    ///
    /// # Errors
    /// The device failed.
    pub fn times(&self, n_rows: usize) -> Result<Vec<(String, f32)>, BackendError> {
        let kept = self.longest(n_rows);
        kept.map_or(Ok(Vec::new()), |recording| recording.times(&self.gpu))
    }

    /// Dispatches of the recorded steps of so many rows.
    pub fn n_dispatches(&self, n_rows: usize) -> usize {
        self.longest(n_rows).map_or(0, |kept| kept.dispatches.len())
    }

    /// Groups of dispatches of such a step that run side by side.
    pub fn n_stages(&self, n_rows: usize) -> usize {
        self.longest(n_rows).map_or(0, Recording::n_stages)
    }

    /// Of the recorded steps of so many rows the one with the most dispatches.
    fn longest(&self, n_rows: usize) -> Option<&Recording> {
        self.kept
            .iter()
            .filter(|(key, _)| key.shape.n_rows == n_rows)
            .map(|(_, recording)| recording)
            .max_by_key(|recording| recording.dispatches.len())
    }

    /// The numbers of rows, without the workspace of a step of so many.
    pub(crate) fn rows(&self, capacity: usize) -> Result<Rows, BackendError> {
        let n_bytes = RowsImage::n_bytes(&self.geometry, capacity) as u64;
        Ok(Rows {
            memory: Allocation::new(&self.gpu, "rows", n_bytes)?,
            n_rows: 0,
        })
    }

    /// Hands what was recorded to the device.
    fn flush(&mut self) {
        self.last = None;
        self.own.rewind();
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

    fn limits(&self) -> Limits {
        Limits {
            prefill_rows: PREFILL_ROWS,
            ..Limits::default()
        }
    }

    fn row_class(&self, n_rows: usize) -> usize {
        match n_rows {
            0..=8 => n_rows.next_power_of_two(),
            9..=256 => n_rows.next_multiple_of(32),
            _ => n_rows.next_multiple_of(256),
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.gpu.capabilities.memory_bytes
    }

    fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
        weight::n_bytes(need.role, ty, &need.ne)
    }

    fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
        let n_rows = shape.max_rows.max(shape.max_outputs).max(FEW_ROWS as usize);
        let splits = SPLITS * self.geometry.n_heads * (self.geometry.head_dim + 2);
        4 * (turn_sums(&self.geometry, n_rows) + splits) as u64
            + many::workspace_bytes(&self.geometry, n_rows)
    }

    fn upload(&mut self, need: &Requirement, tensor: Tensor) -> Result<Weight, BackendError> {
        let weight = Weight::new(&self.gpu, need.role, &tensor)?;
        self.gpu.check()?;
        Ok(weight)
    }

    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Buffer, BackendError> {
        Buffer::new(&self.gpu, element, shape)
    }

    fn alloc_rows(&mut self, capacity: usize) -> Result<Rows, BackendError> {
        if capacity > self.turn_rows {
            let n_floats = turn_sums(&self.geometry, capacity) as u64;
            self.turn_sums = Arc::new(Allocation::new(&self.gpu, "sums of turns", 4 * n_floats)?);
            self.turn_rows = capacity;
        }
        if capacity > FEW_ROWS as usize && self.many.as_ref().is_none_or(|m| m.n_rows < capacity) {
            self.many = Some(ManyWorkspace::new(&self.gpu, &self.geometry, capacity)?);
        }
        self.rows(capacity)
    }

    fn write_rows(&mut self, rows: &mut Rows, image: &RowsImage) {
        if self.key.is_none() {
            self.flush();
        }
        self.words.clear();
        for ids in image.ids() {
            self.words
                .extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        for floats in [&image.inv_temperature, &image.angles] {
            self.words
                .extend(floats.iter().flat_map(|x| x.to_le_bytes()));
        }
        rows.n_rows = image.len();
        memory::write(&self.gpu, &rows.memory, 0, &self.words);
    }

    fn write_many(&mut self, parts: &mut [WritePart<'_, Buffer>]) -> Result<(), BackendError> {
        self.flush();
        for part in parts {
            for (at, bytes) in &part.pieces {
                let at = part.buffer.byte_offset(*at);
                memory::write(&self.gpu, &part.buffer.memory, at, bytes);
            }
        }
        self.gpu.check()
    }

    fn read_many(&mut self, parts: &mut [ReadPart<'_, Buffer>]) -> Result<(), BackendError> {
        self.flush();
        let mut ranges: Vec<(Bound<'_>, &mut [u8])> = parts
            .iter_mut()
            .map(|part| {
                let at = part.buffer.byte_offset(part.at);
                let range = part.buffer.memory.range(at, part.bytes.len() as u64);
                (range, &mut *part.bytes)
            })
            .collect();
        record::read(&self.gpu, &mut self.staging, &mut ranges)
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

    fn begin(&mut self, key: &StepKey) -> ds4_model::Recording {
        self.halved = None;
        // Copies between steps come before what the step records.
        self.flush();
        self.fresh = None;
        self.key = Some(*key);
        if self.kept.contains_key(key) {
            ds4_model::Recording::Replay
        } else {
            ds4_model::Recording::Record
        }
    }

    fn launch(&mut self) -> Result<(), BackendError> {
        if let Some(key) = self.key.take() {
            let encoded = self.encoded.take().filter(|(of, _)| *of == key);
            let recording = std::mem::take(&mut self.recording);
            let kept = self.kept.entry(key).or_insert(recording);
            let commands = encoded.map_or_else(|| kept.encode(&self.gpu), |(_, commands)| commands);
            self.gpu.queue.submit([commands]);
        } else {
            self.flush();
        }
        self.gpu.check()
    }

    fn anticipate(&mut self, key: &StepKey) {
        if self.encoded.as_ref().is_none_or(|(of, _)| of != key)
            && let Some(kept) = self.kept.get(key)
        {
            self.encoded = Some((*key, kept.encode(&self.gpu)));
        }
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        self.flush();
        self.gpu.check()
    }

    fn end_session(&mut self, session: u64) {
        self.kept.retain(|key, _| key.session != session);
        self.encoded = None;
        self.codes.clear();
        self.bind_groups = BindGroups::default();
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

    fn hc_pre_norm(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        entry: Entry<'_, Weight>,
        gates: &mut Buffer,
        x: &mut Buffer,
    ) {
        self.fresh = None;
        if self.record_turn(rows, None, streams, entry, gates, x) {
            self.fresh = Some(x.memory.id);
        } else {
            self.record_hc_gates(rows, streams, entry.hc, gates);
            self.record_hc_pre(rows, streams, gates, x);
            self.record_rms_norm(rows, entry.norm, x);
        }
    }

    fn turn(&mut self, rows: &Rows, t: Turn<'_, Buffer, Weight>) {
        self.fresh = None;
        if self.record_turn(rows, Some(t.y), t.streams, t.next, t.gates, t.x) {
            self.fresh = Some(t.x.memory.id);
        } else {
            self.record_hc_post(rows, t.y, t.gates, t.streams);
            self.hc_pre_norm(rows, t.streams, t.next, t.gates, t.x);
        }
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

    fn tap(&mut self, rows: &Rows, streams: &Buffer, at: usize, taps: &mut Buffer) {
        self.record_tap(rows, streams, at, taps);
    }

    fn select_rows(&mut self, rows: &Rows, x: &Buffer, out: &mut Buffer) {
        self.record_elementwise("select_rows", rows, x, out);
    }

    fn rms_norm(&mut self, rows: &Rows, weight: &Weight, x: &mut Buffer) {
        self.record_rms_norm(rows, weight, x);
    }

    fn matmul(&mut self, rows: &Rows, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        self.matmuls(rows, x, &mut [(weight, out)]);
    }

    fn matmuls(&mut self, rows: &Rows, x: &Buffer, products: &mut [(&Weight, &mut Buffer)]) {
        self.halved = None;
        let few = self.is_few(rows);
        let wants_codes =
            |(weight, _): &(&Weight, &mut Buffer)| self.is_integer(weight) && self.takes(weight, x);
        if few && products.iter().any(wants_codes) {
            self.record_quantise(rows, x);
        }
        for (weight, out) in products {
            if few && self.takes(weight, x) {
                self.record_product(rows, &Product::of(weight, x, out));
            } else {
                self.record_any_matmul(rows, weight, weight.n_out, x, out);
            }
        }
    }

    fn matmul_grouped(&mut self, rows: &Rows, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        self.halved = None;
        let group_out = self.geometry.out_rank;
        if self.is_few(rows) && self.takes(weight, x) && group_out.is_multiple_of(32) {
            self.record_quantise(rows, x);
            let product = Product {
                group_out,
                ..Product::of(weight, x, out)
            };
            self.record_product(rows, &product);
        } else {
            self.record_any_matmul(rows, weight, group_out, x, out);
        }
    }

    fn add(&mut self, rows: &Rows, x: &Buffer, out: &mut Buffer) {
        self.record_elementwise("add", rows, x, out);
    }

    fn choose(&mut self, rows: &Rows, logits: &Buffer, choice: &mut Choice<Buffer>) {
        self.record_choose(rows, logits, choice);
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

    fn q_norm_rope(&mut self, rows: &Rows, table: RopeTable, q: &mut Buffer) {
        self.record_q_norm_rope(rows, table, q);
    }

    fn kv_norm_rope(
        &mut self,
        rows: &Rows,
        norm: &Weight,
        table: RopeTable,
        rounded: bool,
        kv: &mut Buffer,
    ) {
        self.record_kv_norm_rope(rows, norm, table, rounded, None, kv, None);
    }

    fn compress(&mut self, rows: &Rows, c: Compress<'_, Buffer, Weight>) {
        let compressor = c.compressor;
        let operands = FewCompress {
            compressor,
            rounded: c.rounded,
            kv: c.kv,
            gate: c.gate,
            frontier: c.frontier,
            cache: c.cache,
        };
        if self.record_compress(rows, &operands) {
            return;
        }
        let ratio = compressor.kind.ratio().expect("a compressed layer");
        let table = RopeTable::start_of(ratio);
        self.record_add_position_bias(rows, &compressor.ape, ratio, c.gate);
        let inputs = Pool {
            kind: compressor.kind,
            kv: c.kv,
            gate: c.gate,
            frontier: c.frontier,
        };
        self.record_pool(rows, &inputs, c.pooled);
        self.record_rms_norm(rows, &compressor.norm, c.pooled);
        self.record_rope(rows, table, Rotation::Forward, compressor.row_dim, c.pooled);
        match (c.rounded, compressor.index) {
            (false, _) => {}
            (true, false) => self.record_kv_round(rows, c.pooled),
            (true, true) => self.record_index_round(rows, c.pooled),
        }
        self.record_store_compressed(rows, ratio, c.pooled, c.cache);
        self.record_store_frontier(rows, c.kv, c.gate, c.frontier);
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

    fn pool(&mut self, rows: &Rows, inputs: Pool<'_, Buffer>, pooled: &mut Buffer) {
        self.record_pool(rows, &inputs, pooled);
    }

    fn store_compressed(&mut self, rows: &Rows, ratio: usize, pooled: &Buffer, cache: &mut Buffer) {
        self.record_store_compressed(rows, ratio, pooled, cache);
    }

    fn store_frontier(&mut self, rows: &Rows, kv: &Buffer, gate: &Buffer, frontier: &mut Buffer) {
        self.record_store_frontier(rows, kv, gate, frontier);
    }

    fn index_scores(&mut self, rows: &Rows, inputs: IndexScores<'_, Buffer>, scores: &mut Buffer) {
        self.record_index_scores(rows, &inputs, scores);
    }

    fn top_k(&mut self, rows: &Rows, tile: ScoreTile, scores: &Buffer, selected: &mut Buffer) {
        self.record_top_k(rows, &tile, scores, selected);
    }

    fn attend(&mut self, rows: &Rows, inputs: Attend<'_, Buffer, Weight>, out: &mut Buffer) {
        if self.attends_tiles(inputs.ring) {
            self.record_attend_tile(rows, &inputs, out, None);
        } else {
            self.record_attend(rows, &inputs, out);
        }
    }

    fn attention(&mut self, rows: &Rows, sublayer: AttentionSublayer<'_, Buffer, Weight>) {
        self.halved = None;
        self.record_attention(rows, sublayer);
    }

    fn experts(&mut self, rows: &Rows, sublayer: ExpertsSublayer<'_, Buffer, Weight>) {
        self.halved = None;
        self.record_experts(rows, sublayer);
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
        g: ExpertsGateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        self.halved = None;
        if self.is_few(rows) && self.takes(g.gate, g.x) {
            if self.is_integer(g.gate) {
                self.record_quantise(rows, g.x);
            }
            let routing = Routing::Given(g.routes);
            if self.record_gate_up_few(rows, g.gate, g.up, g.clamp, g.x, routing, hidden, false) {
                return;
            }
        }
        if self.tiles_pairs(rows, [g.gate, g.up, g.gate]) {
            self.record_sort_pairs(rows, g.routes);
            self.record_gate_up_pairs(rows, g.gate, g.up, g.clamp, g.x, g.routes, hidden);
            return;
        }
        self.record_gate_up(rows, g.gate, g.up, g.clamp, g.x, Some(g.routes), hidden);
    }

    fn experts_down(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &mut Buffer,
    ) {
        self.halved = None;
        if self.is_few(rows) && self.takes(down, hidden) {
            if self.is_integer(down) {
                self.record_quantise(rows, hidden);
            }
            self.record_experts_down_few(rows, down, hidden, routes, None, out);
        } else if self.tiles_pairs(rows, [down; 3]) {
            self.record_sort_pairs(rows, routes);
            self.record_down_pairs(rows, down, hidden, routes, out);
        } else {
            self.record_experts_down(rows, down, hidden, routes, out);
        }
    }

    fn gate_up(&mut self, rows: &Rows, g: GateUp<'_, Buffer, Weight>, hidden: &mut Buffer) {
        self.halved = None;
        if self.is_few(rows) && self.takes(g.gate, g.x) {
            if self.is_integer(g.gate) {
                self.record_quantise(rows, g.x);
            }
            if self.record_gate_up_few(
                rows,
                g.gate,
                g.up,
                g.clamp,
                g.x,
                Routing::Shared,
                hidden,
                false,
            ) {
                return;
            }
        }
        if self.is_few(rows) || !self.record_gate_up_dense(rows, g.gate, g.up, g.clamp, g.x, hidden)
        {
            self.record_gate_up(rows, g.gate, g.up, g.clamp, g.x, None, hidden);
        }
    }
}
