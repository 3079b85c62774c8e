//! The ops by name: on the kernels for the published geometry where they can, on the plain ones
//! elsewhere.

use ds4_formats::{GgmlType, Tensor};
use ds4_model::session::SessionShape;
use ds4_model::weights::HyperConnection;
use ds4_model::{
    Attend, AttentionSublayer, Backend, BackendError, Choice, ElementType, Entry, ExpertsGateUp,
    ExpertsSublayer, GateUp, Geometry, IndexScores, Limits, Place, Pool, ReadPart, Recording,
    Requirement, RopeTable, Rotation, Routes, RowsImage, ScoreTile, Shape, StepKey, Turn,
    WritePart,
};

use crate::backend::CudaBackend;
use crate::buffer::{Buffer, Rows};
use crate::driver::{Launch, parameter as p};
use crate::plain::{each_row, inverse_root, n, typed, unit};
use crate::weight::Weight;

impl Backend for CudaBackend {
    type Buffer = Buffer;
    type Weight = Weight;
    type Rows = Rows;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn limits(&self) -> Limits {
        CudaBackend::limits(self)
    }

    fn row_class(&self, n_rows: usize) -> usize {
        CudaBackend::row_class(self, n_rows)
    }

    fn memory_bytes(&self) -> Option<u64> {
        CudaBackend::memory_bytes(self)
    }

    fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
        CudaBackend::weight_bytes(self, need, ty)
    }

    fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
        CudaBackend::workspace_bytes(self, shape)
    }

    fn upload(&mut self, need: &Requirement, tensor: Tensor) -> Result<Weight, BackendError> {
        CudaBackend::upload(self, need, tensor)
    }

    fn defers_uploads(&self) -> bool {
        true
    }

    fn uploads_done(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), BackendError> {
        CudaBackend::uploads_done(self, progress)
    }

    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Buffer, BackendError> {
        CudaBackend::alloc(self, element, shape)
    }

    fn alloc_rows(&mut self, capacity: usize) -> Result<Rows, BackendError> {
        CudaBackend::alloc_rows(self, capacity)
    }

    fn write_rows(&mut self, rows: &mut Rows, image: &RowsImage) {
        CudaBackend::write_rows(self, rows, image);
    }

    fn write_many(&mut self, parts: &mut [WritePart<'_, Buffer>]) -> Result<(), BackendError> {
        CudaBackend::write_many(self, parts)
    }

    fn read_many(&mut self, parts: &mut [ReadPart<'_, Buffer>]) -> Result<(), BackendError> {
        CudaBackend::read_many(self, parts)
    }

    fn copy_rows(&mut self, buffer: &mut Buffer, from: Place, to: Place, n_rows: usize) {
        CudaBackend::copy_rows(self, buffer, from, to, n_rows);
    }

    fn begin(&mut self, key: &StepKey) -> Recording {
        CudaBackend::begin(self, key)
    }

    fn launch(&mut self) -> Result<(), BackendError> {
        CudaBackend::launch(self)
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        CudaBackend::wait(self)
    }

    fn end_session(&mut self, session: u64) {
        CudaBackend::end_session(self, session);
    }

    fn embed(&mut self, rows: &Rows, table: &Weight, streams: &mut Buffer) {
        if self.is_noting() {
            return self.note_embed(rows, table);
        }
        let n_hc = n(self.geometry.n_hc);
        self.run(
            &typed("embed.cu", table),
            "embed",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&table.matrix()),
                p(&n_hc),
                p(&streams.address()),
            ],
        );
    }

    fn hc_gates(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &mut Buffer,
    ) {
        self.plain_hc_gates(rows, streams, hc, gates);
    }

    fn hc_pre(&mut self, rows: &Rows, streams: &Buffer, gates: &Buffer, x: &mut Buffer) {
        self.forget_halves();
        let n_hc = n(self.geometry.n_hc);
        self.run(
            &unit("streams.cu"),
            "hc_pre",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&streams.address()),
                p(&gates.address()),
                p(&n(gates.width())),
                p(&n_hc),
                p(&n(x.width())),
                p(&x.address()),
            ],
        );
    }

    fn hc_pre_norm(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        entry: Entry<'_, Weight>,
        gates: &mut Buffer,
        x: &mut Buffer,
    ) {
        if self.is_noting() {
            return;
        }
        if self
            .fast_turn(rows, None, entry, gates, streams, x)
            .is_none()
        {
            self.hc_gates(rows, streams, entry.hc, gates);
            self.hc_pre(rows, streams, gates, x);
            self.rms_norm(rows, entry.norm, x);
        }
    }

    fn turn(&mut self, rows: &Rows, t: Turn<'_, Buffer, Weight>) {
        if self.is_noting() {
            return;
        }
        let Turn {
            y,
            next,
            gates,
            streams,
            x,
        } = t;
        if self
            .fast_turn(rows, Some(y), next, gates, streams, x)
            .is_none()
        {
            self.hc_post(rows, y, gates, streams);
            self.hc_pre_norm(rows, streams, next, gates, x);
        }
    }

    fn attention(&mut self, rows: &Rows, mut sublayer: AttentionSublayer<'_, Buffer, Weight>) {
        if self.is_noting() {
            return self.note_attention(&sublayer);
        }
        if self.fast_attention(rows, &mut sublayer).is_none() {
            ds4_model::attention(self, rows, sublayer);
        }
    }

    fn hc_post(&mut self, rows: &Rows, y: &Buffer, gates: &Buffer, streams: &mut Buffer) {
        if self.is_noting() {
            return;
        }
        let n_hc = n(self.geometry.n_hc);
        self.run(
            &unit("streams.cu"),
            "hc_post",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&y.address()),
                p(&gates.address()),
                p(&n_hc),
                p(&n(y.width())),
                p(&streams.address()),
            ],
        );
    }

    fn hc_head(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        h: &mut Buffer,
    ) {
        if self.is_noting() {
            return self.note_head(hc);
        }
        self.plain_hc_head(rows, streams, hc, h);
    }

    fn tap(&mut self, rows: &Rows, streams: &Buffer, at: usize, taps: &mut Buffer) {
        self.see_tap();
        let (n_hc, n_embd) = (self.geometry.n_hc, self.geometry.n_embd);
        self.run(
            &unit("streams.cu"),
            "tap",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&streams.address()),
                p(&n(n_hc)),
                p(&n(n_embd)),
                p(&taps.address()),
                p(&n(taps.width())),
                p(&n(at * n_embd)),
            ],
        );
    }

    fn select_rows(&mut self, rows: &Rows, x: &Buffer, out: &mut Buffer) {
        if self.is_noting() {
            return;
        }
        self.run(
            &unit("streams.cu"),
            "select_rows",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&x.address()),
                p(&n(x.width())),
                p(&out.address()),
            ],
        );
    }

    fn rms_norm(&mut self, rows: &Rows, weight: &Weight, x: &mut Buffer) {
        if self.is_noting() {
            return self.note_head_norm(weight);
        }
        let eps = self.geometry.rms_eps;
        self.run(
            &unit("rows.cu"),
            "rms_norm",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&weight.address()),
                p(&eps),
                p(&x.address()),
                p(&n(x.width())),
            ],
        );
    }

    fn matmul(&mut self, rows: &Rows, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        if self.is_noting() {
            if let Err(error) = self.finish_notes(Some((rows, weight, out))) {
                self.fail(error);
            }
            return;
        }
        if self.fast_matmul(rows, weight, x, out).is_none() {
            self.product(weight, 0, x, (out.address(), out.width()), rows.n_rows());
        }
    }

    fn matmul_grouped(&mut self, rows: &Rows, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        let rank = self.geometry.out_rank;
        self.product(weight, rank, x, (out.address(), out.width()), rows.n_rows());
    }

    fn add(&mut self, rows: &Rows, x: &Buffer, out: &mut Buffer) {
        self.run(
            &unit("rows.cu"),
            "add",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&x.address()),
                p(&out.address()),
                p(&n(out.width())),
            ],
        );
    }

    fn choose(&mut self, rows: &Rows, logits: &Buffer, choice: &mut Choice<Buffer>) {
        self.plain_choose(rows, logits, choice);
    }

    fn head_norm(&mut self, rows: &Rows, head_dim: usize, x: &mut Buffer) {
        let eps = self.geometry.rms_eps;
        self.run(
            &unit("rows.cu"),
            "head_norm",
            Launch::new([x.width() / head_dim, rows.n_rows(), 1], 32),
            &[
                p(&rows.view()),
                p(&n(head_dim)),
                p(&eps),
                p(&x.address()),
                p(&n(x.width())),
            ],
        );
    }

    fn rope(
        &mut self,
        rows: &Rows,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &mut Buffer,
    ) {
        let sign: f32 = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Inverse => -1.0,
        };
        let rope_dim = n(self.geometry.rope_dim);
        self.run(
            &unit("rows.cu"),
            "rope",
            Launch::new([x.width() / head_dim, rows.n_rows(), 1], 32),
            &[
                p(&rows.view()),
                p(&(table as u32)),
                p(&sign),
                p(&n(head_dim)),
                p(&rope_dim),
                p(&x.address()),
                p(&n(x.width())),
            ],
        );
    }

    fn kv_round(&mut self, rows: &Rows, x: &mut Buffer) {
        let rope_dim = n(self.geometry.rope_dim);
        self.run(
            &unit("rows.cu"),
            "kv_round",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&rope_dim),
                p(&x.address()),
                p(&n(x.width())),
            ],
        );
    }

    fn index_round(&mut self, rows: &Rows, x: &mut Buffer) {
        let dim = self.geometry.index_dim;
        self.run(
            &unit("rows.cu"),
            "index_round",
            Launch::new([x.width() / dim, rows.n_rows(), 1], 128).shared(4 * dim),
            &[
                p(&rows.view()),
                p(&n(dim)),
                p(&inverse_root(dim)),
                p(&x.address()),
                p(&n(x.width())),
            ],
        );
    }

    fn store_window(&mut self, rows: &Rows, kv: &Buffer, window: &mut Buffer) {
        self.run(
            &unit("caches.cu"),
            "store_window",
            each_row(rows),
            &[p(&rows.view()), p(&kv.address()), p(&window.cache())],
        );
    }

    fn add_position_bias(&mut self, rows: &Rows, ape: &Weight, ratio: usize, gate: &mut Buffer) {
        self.run(
            &unit("caches.cu"),
            "add_position_bias",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&ape.address()),
                p(&n(ratio)),
                p(&gate.address()),
                p(&n(gate.width())),
            ],
        );
    }

    fn pool(&mut self, rows: &Rows, inputs: Pool<'_, Buffer>, pooled: &mut Buffer) {
        self.plain_pool(rows, inputs, pooled);
    }

    fn store_compressed(&mut self, rows: &Rows, ratio: usize, pooled: &Buffer, cache: &mut Buffer) {
        self.run(
            &unit("caches.cu"),
            "store_compressed",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&n(ratio)),
                p(&pooled.address()),
                p(&cache.cache()),
            ],
        );
    }

    fn store_frontier(&mut self, rows: &Rows, kv: &Buffer, gate: &Buffer, frontier: &mut Buffer) {
        self.run(
            &unit("caches.cu"),
            "store_frontier",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&kv.address()),
                p(&gate.address()),
                p(&frontier.cache()),
            ],
        );
    }

    fn index_scores(&mut self, rows: &Rows, inputs: IndexScores<'_, Buffer>, scores: &mut Buffer) {
        self.plain_index_scores(rows, inputs, scores);
    }

    fn top_k(&mut self, rows: &Rows, tile: ScoreTile, scores: &Buffer, selected: &mut Buffer) {
        self.run(
            &unit("index.cu"),
            "top_k",
            Launch::new([tile.rows.len(), 1, 1], 1024),
            &[
                p(&rows.view()),
                p(&n(tile.rows.start)),
                p(&scores.address()),
                p(&n(tile.stride)),
                p(&selected.address()),
                p(&n(selected.width())),
            ],
        );
    }

    fn attend(&mut self, rows: &Rows, inputs: Attend<'_, Buffer, Weight>, out: &mut Buffer) {
        self.plain_attend(rows, inputs, out);
    }

    fn experts(&mut self, rows: &Rows, mut sublayer: ExpertsSublayer<'_, Buffer, Weight>) {
        if self.is_noting() {
            return;
        }
        if self.fast_experts(rows, &mut sublayer).is_none() {
            ds4_model::experts(self, rows, sublayer);
        }
    }

    fn router_scores(&mut self, rows: &Rows, scores: &mut Buffer) {
        self.run(
            &unit("routes.cu"),
            "router_scores",
            each_row(rows),
            &[p(&rows.view()), p(&scores.address()), p(&n(scores.width()))],
        );
    }

    fn route_hash(
        &mut self,
        rows: &Rows,
        ids: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        self.plain_route_hash(rows, ids, scores, routes);
    }

    fn route_top_k(
        &mut self,
        rows: &Rows,
        bias: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        self.plain_route_top_k(rows, bias, scores, routes);
    }

    fn experts_gate_up(
        &mut self,
        rows: &Rows,
        inputs: ExpertsGateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        self.plain_experts_gate_up(rows, inputs, hidden);
    }

    fn experts_down(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &mut Buffer,
    ) {
        self.plain_experts_down(rows, down, hidden, routes, out);
    }

    fn gate_up(&mut self, rows: &Rows, inputs: GateUp<'_, Buffer, Weight>, hidden: &mut Buffer) {
        self.plain_gate_up(rows, inputs, hidden);
    }
}
