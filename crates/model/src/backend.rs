//! The `Backend` trait: every operation the network is made of.
//!
//! A backend has kernels and memory. It has no layer loop, no tensor names and
//! no numbers of the geometry other than those it is given. [`crate::forward`]
//! calls these methods in a straight line.
//!
//! # A step
//!
//! ```text
//! begin(key)  Record: the ops of the step follow      Replay: none follows
//! write_rows, ops                                     write_rows
//! launch      starts the step                         starts the recording of this key
//! wait        until it is done, or says that it failed
//! ```
//!
//! Ops record and return nothing; they may run at once (CPU) or when
//! [`Backend::launch`] is called. They are called between `begin` and `launch`
//! only. Everything that differs between two steps of the same [`StepKey`] is
//! read from [`Backend::Rows`] on the device, and no op allocates, so a backend
//! can answer [`Recording::Replay`] to a key that it has recorded before: then
//! no op is called. Between `launch` and `wait` the host may do anything but
//! use this backend, except for [`Backend::anticipate`].
//!
//! # Shapes
//!
//! A [`Backend::Buffer`] is `[n_slots, n_rows, width]`, outermost first, of one
//! [`ElementType`]. Activations have one slot; row `r` belongs to row `r` of the
//! step. Rings have one slot for every sequence. Compressed and index rows of all
//! sequences lie in one slot, those of a sequence from row
//! [`RowsImage::first_compressed`] on, so that sequences may have different
//! capacities. Ops process the rows of `rows` only and leave the rest of a buffer
//! alone. Widths written below use the names of [`Geometry`].
//!
//! # Fused ops
//!
//! A method with a default body is a *fused* op: the default is its meaning,
//! in primitive ops. [`crate::Unfused`] restores the defaults. Three of them
//! are whole parts of a layer ([`Backend::attention`], [`Backend::experts`],
//! [`Backend::turn`]): a backend that fuses across ops overrides these, and
//! [`crate::forward`] stays the only place that puts a network together.

use ds4_formats::{GgmlType, Tensor};

use crate::forward;
use crate::geometry::Geometry;
use crate::operands::*;
use crate::rope::RopeTable;
use crate::rows::RowsImage;
use crate::session::SessionShape;
use crate::weights::{HyperConnection, Requirement};

/// The operations of the network on one device. See the [module](self) for the
/// rules that all of them obey.
pub trait Backend: Sized {
    /// Memory on the device.
    type Buffer;
    /// A weight in the form the device wants it.
    type Weight;
    /// A [`RowsImage`] on the device.
    type Rows;

    /// The geometry the kernels were specialised to.
    fn geometry(&self) -> &Geometry;

    // What it wants and has ---------------------------------------------------

    /// What it asks of steps.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Rows that a step of `n_rows` rows, or of `n_rows` outputs, is padded to: at
    /// least as many. Few classes mean few recordings.
    fn row_class(&self, n_rows: usize) -> usize {
        n_rows
    }

    /// Bytes of memory that weights, sessions and workspace can take on the device;
    /// `None` when it is the machine's own.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes that a weight takes on the device in the form it will have there; 0 for
    /// one that is used where it lies in the file.
    fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
        let _ = (need, ty);
        0
    }

    /// Bytes that the backend takes for a session beside its buffers.
    fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
        let _ = shape;
        0
    }

    // Weights -----------------------------------------------------------------

    /// Takes a weight. `tensor.ne` was checked by the caller against `need`; any type
    /// that `ds4_formats` decodes is accepted, except that `Ids` are I32. A backend
    /// that [defers](Backend::defers_uploads) keeps the tensor and moves its bytes in
    /// [`Backend::uploads_done`]; [`Tensor::origin`] says which part of which file
    /// they are.
    fn upload(&mut self, need: &Requirement, tensor: Tensor) -> Result<Self::Weight, BackendError>;

    /// Whether bytes are moved in [`Backend::uploads_done`].
    fn defers_uploads(&self) -> bool {
        false
    }

    /// Called once after the last upload. A backend that defers moves the bytes now,
    /// and tells `progress` how many after every part.
    fn uploads_done(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), BackendError> {
        let _ = progress;
        Ok(())
    }

    // Memory ------------------------------------------------------------------

    /// Allocates a zeroed buffer. Called while a session opens, never later.
    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Self::Buffer, BackendError>;

    /// Allocates the per-step numbers of up to `capacity` rows.
    fn alloc_rows(&mut self, capacity: usize) -> Result<Self::Rows, BackendError>;

    /// Replaces the per-step numbers; the step that is launched next sees them.
    fn write_rows(&mut self, rows: &mut Self::Rows, image: &RowsImage);

    /// Writes whole rows of several buffers, after every step that was launched and
    /// before every op that is recorded, and waits once.
    fn write_many(&mut self, parts: &mut [WritePart<'_, Self::Buffer>])
    -> Result<(), BackendError>;

    /// Reads whole rows of several buffers, after every step that was launched, and
    /// waits once.
    fn read_many(&mut self, parts: &mut [ReadPart<'_, Self::Buffer>]) -> Result<(), BackendError>;

    /// [`Backend::write_many`] of one part.
    fn write(
        &mut self,
        buffer: &mut Self::Buffer,
        at: Place,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let pieces = vec![(at, bytes)];
        self.write_many(&mut [WritePart { buffer, pieces }])
    }

    /// [`Backend::read_many`] of one part.
    fn read(
        &mut self,
        buffer: &Self::Buffer,
        at: Place,
        bytes: &mut [u8],
    ) -> Result<(), BackendError> {
        self.read_many(&mut [ReadPart { buffer, at, bytes }])
    }

    /// Copies `n_rows` rows inside a buffer, after every step that was launched and
    /// before the next. The ranges do not overlap. A failure surfaces at the next
    /// `wait` or read.
    fn copy_rows(&mut self, buffer: &mut Self::Buffer, from: Place, to: Place, n_rows: usize);

    // Steps -------------------------------------------------------------------

    /// Begins a step and says whether its ops are wanted. A key that was recorded
    /// and launched once may be replayed.
    fn begin(&mut self, key: &StepKey) -> Recording {
        let _ = key;
        Recording::Record
    }

    /// Starts the step. An error is that of this step.
    fn launch(&mut self) -> Result<(), BackendError>;

    /// Called between `launch` and `wait`: the next step is likely to have this key.
    /// A backend that encodes a recording anew for every step may do so now.
    fn anticipate(&mut self, key: &StepKey) {
        let _ = key;
    }

    /// Waits for the step that was launched last and says whether it succeeded.
    fn wait(&mut self) -> Result<(), BackendError>;

    /// A session is closed: its recordings are of no use any more.
    fn end_session(&mut self, session: u64) {
        let _ = session;
    }

    // Streams -----------------------------------------------------------------

    /// `streams[r, j] = table[token[r]]` for every stream `j`.
    /// `streams`: f32 `[n_rows, n_hc * n_embd]`, stream-major.
    fn embed(&mut self, rows: &Self::Rows, table: &Self::Weight, streams: &mut Self::Buffer);

    /// The mix of a hyper-connection (model.md 3): with `v` the flattened
    /// streams, `mix = (fn · v) * rsqrt(mean(v²) + rms_eps)`, then
    /// `pre = σ(mix * scale[0] + base) + hc_eps`,
    /// `post = 2 σ(mix * scale[1] + base)`, and `comb` by `n_sinkhorn`
    /// Sinkhorn steps, the first a softmax along the destination.
    /// `gates`: f32 `[n_rows, n_gates]` = `pre[n_hc], post[n_hc], comb[n_hc source, n_hc destination]`.
    fn hc_gates(
        &mut self,
        rows: &Self::Rows,
        streams: &Self::Buffer,
        hc: &HyperConnection<Self::Weight>,
        gates: &mut Self::Buffer,
    );

    /// `x = Σ_j pre[j] * streams[j]`. `x`: f32 `[n_rows, n_embd]`.
    fn hc_pre(
        &mut self,
        rows: &Self::Rows,
        streams: &Self::Buffer,
        gates: &Self::Buffer,
        x: &mut Self::Buffer,
    );

    /// `hc_gates`, `hc_pre`, then the sublayer's `rms_norm`.
    fn hc_pre_norm(
        &mut self,
        rows: &Self::Rows,
        streams: &Self::Buffer,
        entry: Entry<'_, Self::Weight>,
        gates: &mut Self::Buffer,
        x: &mut Self::Buffer,
    ) {
        self.hc_gates(rows, streams, entry.hc, gates);
        self.hc_pre(rows, streams, gates, x);
        self.rms_norm(rows, entry.norm, x);
    }

    /// From one sublayer to the next: `hc_post`, then `hc_pre_norm`.
    fn turn(&mut self, rows: &Self::Rows, t: Turn<'_, Self::Buffer, Self::Weight>) {
        self.hc_post(rows, t.y, t.gates, t.streams);
        self.hc_pre_norm(rows, t.streams, t.next, t.gates, t.x);
    }

    /// `streams'[k] = post[k] * y + Σ_j comb[j, k] * streams[j]`, in place.
    fn hc_post(
        &mut self,
        rows: &Self::Rows,
        y: &Self::Buffer,
        gates: &Self::Buffer,
        streams: &mut Self::Buffer,
    );

    /// The streams' weighted sum before the output norm:
    /// `w[j] = σ((fn[j] · v) * inv * scale[0] + base[j]) + hc_eps`,
    /// `h = Σ_j w[j] * streams[j]`. `h`: f32 `[n_rows, n_embd]`.
    fn hc_head(
        &mut self,
        rows: &Self::Rows,
        streams: &Self::Buffer,
        hc: &HyperConnection<Self::Weight>,
        h: &mut Self::Buffer,
    );

    /// The mean over the streams, as block `at` of a row of `taps`: f32
    /// `[n_rows, n_taps * n_embd]`. What a drafter takes from a layer.
    fn tap(
        &mut self,
        rows: &Self::Rows,
        streams: &Self::Buffer,
        at: usize,
        taps: &mut Self::Buffer,
    );

    /// `out[r] = x[source[r]]`: the rows that need logits.
    fn select_rows(&mut self, rows: &Self::Rows, x: &Self::Buffer, out: &mut Self::Buffer);

    // Dense -------------------------------------------------------------------

    /// `x = weight * x * rsqrt(mean(x²) + rms_eps)`, in place, over the width of `x`.
    fn rms_norm(&mut self, rows: &Self::Rows, weight: &Self::Weight, x: &mut Self::Buffer);

    /// `out = W x`. `x`: `[n_rows, n_in]`, `out`: `[n_rows, n_out]`.
    fn matmul(
        &mut self,
        rows: &Self::Rows,
        weight: &Self::Weight,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// Several products of the same input.
    fn matmuls(
        &mut self,
        rows: &Self::Rows,
        x: &Self::Buffer,
        products: &mut [(&Self::Weight, &mut Self::Buffer)],
    ) {
        for (weight, out) in products {
            self.matmul(rows, weight, x, out);
        }
    }

    /// The first half of the output projection: row block `g` of `weight`
    /// (`[n_out_groups * out_rank, group_dim]`) applies to channels
    /// `g * group_dim ..` of `x`. `x`: `[n_rows, n_heads * head_dim]`,
    /// `out`: `[n_rows, n_out_groups * out_rank]`.
    fn matmul_grouped(
        &mut self,
        rows: &Self::Rows,
        weight: &Self::Weight,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// `out += x`, element by element.
    fn add(&mut self, rows: &Self::Rows, x: &Self::Buffer, out: &mut Self::Buffer);

    /// For every output the [`N_CANDIDATES`] largest logits, descending, of equal ones
    /// the lowest id first, and the log-sum-exp of all logits at temperature 1 and at
    /// the row's (`inv_temperature`). A logit that is not finite makes both NaN, and the
    /// candidates unspecified. `logits`: f32 `[n_outputs, n_vocab]`.
    fn choose(
        &mut self,
        rows: &Self::Rows,
        logits: &Self::Buffer,
        choice: &mut Choice<Self::Buffer>,
    );

    // Queries and rows --------------------------------------------------------

    /// RMS norm without weight of every head of `head_dim` channels, in place.
    fn head_norm(&mut self, rows: &Self::Rows, head_dim: usize, x: &mut Self::Buffer);

    /// Rotates the last `rope_dim` channels of every head of `head_dim`
    /// channels: neighbours `(2i, 2i + 1)` by the row's angle `i`, in place.
    fn rope(
        &mut self,
        rows: &Self::Rows,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &mut Self::Buffer,
    );

    /// Queries: `head_norm`, then `rope`.
    fn q_norm_rope(&mut self, rows: &Self::Rows, table: RopeTable, q: &mut Self::Buffer) {
        let head_dim = self.geometry().head_dim;
        self.head_norm(rows, head_dim, q);
        self.rope(rows, table, Rotation::Forward, head_dim, q);
    }

    /// Cache rounding of attention rows (model.md 8.1), in place: channels
    /// before the rotated ones in blocks of [`KV_ROUND_BLOCK`](crate::rounding::KV_ROUND_BLOCK)
    /// to E4M3 with a power-of-two scale; the rotated ones to bf16.
    fn kv_round(&mut self, rows: &Self::Rows, x: &mut Self::Buffer);

    /// Cache rounding of index rows and indexer queries (model.md 8.2), in
    /// place: every head of `index_dim` channels goes through an orthonormal
    /// Hadamard transform and is rounded to E2M1 in blocks of
    /// [`INDEX_ROUND_BLOCK`](crate::rounding::INDEX_ROUND_BLOCK) with a power-of-two scale.
    fn index_round(&mut self, rows: &Self::Rows, x: &mut Self::Buffer);

    /// Window rows: `rms_norm`, `rope`, and `kv_round` when `rounded`.
    fn kv_norm_rope(
        &mut self,
        rows: &Self::Rows,
        norm: &Self::Weight,
        table: RopeTable,
        rounded: bool,
        kv: &mut Self::Buffer,
    ) {
        let head_dim = self.geometry().head_dim;
        self.rms_norm(rows, norm, kv);
        self.rope(rows, table, Rotation::Forward, head_dim, kv);
        if rounded {
            self.kv_round(rows, kv);
        }
    }

    /// Stores the rows' `kv` at `position % n_rows` of their slot's window
    /// ring. Of a segment longer than the ring only the last rows are stored.
    /// Recorded after `attend`, which takes the batch's own rows from `kv`.
    fn store_window(&mut self, rows: &Self::Rows, kv: &Self::Buffer, window: &mut Self::Buffer);

    // Compressor --------------------------------------------------------------

    /// `gate[r] += ape[position[r] % ratio]`. `ape`: `[ratio, width]`.
    fn add_position_bias(
        &mut self,
        rows: &Self::Rows,
        ape: &Self::Weight,
        ratio: usize,
        gate: &mut Self::Buffer,
    );

    /// Pools the tokens of every compressed row that a row of the batch
    /// completes (model.md 6): per channel a softmax of the gates over the
    /// row's tokens, applied to their projections. A ratio-4 row pools channels `[0, d)` of the 4 tokens before its window and `[d, 2d)`
    /// of its window's 4; tokens before position 0 do not take part.
    /// `pooled`: f32 `[n_rows, d]`; zero for rows that complete nothing.
    fn pool(
        &mut self,
        rows: &Self::Rows,
        inputs: Pool<'_, Self::Buffer>,
        pooled: &mut Self::Buffer,
    );

    /// Stores `pooled` at its index in the slot's cache, for every row that
    /// completes one. `cache`: `[1, n_tokens / ratio, d]`.
    fn store_compressed(
        &mut self,
        rows: &Self::Rows,
        ratio: usize,
        pooled: &Self::Buffer,
        cache: &mut Self::Buffer,
    );

    /// Stores the rows' projections at `position % n_rows` of their slot's
    /// frontier ring, `[n_slots, n_rows, 2 * compressor_dim]` = `kv` then `gate`.
    /// Recorded after `pool`.
    fn store_frontier(
        &mut self,
        rows: &Self::Rows,
        kv: &Self::Buffer,
        gate: &Self::Buffer,
        frontier: &mut Self::Buffer,
    );

    /// The whole compressor after its two projections: `add_position_bias`,
    /// `pool`, `rms_norm`, `rope` at the window's first token, rounding
    /// (`kv_round`, or `index_round` when `index`) when `rounded`,
    /// `store_compressed`, `store_frontier`.
    fn compress(&mut self, rows: &Self::Rows, c: Compress<'_, Self::Buffer, Self::Weight>) {
        let compressor = c.compressor;
        let ratio = compressor.kind.ratio().expect("a compressed layer");
        let table = RopeTable::start_of(ratio);
        self.add_position_bias(rows, &compressor.ape, ratio, c.gate);
        let inputs = Pool {
            kind: compressor.kind,
            kv: c.kv,
            gate: c.gate,
            frontier: c.frontier,
        };
        self.pool(rows, inputs, c.pooled);
        self.rms_norm(rows, &compressor.norm, c.pooled);
        let forward = Rotation::Forward;
        self.rope(rows, table, forward, compressor.row_dim, c.pooled);
        match (c.rounded, compressor.index) {
            (false, _) => {}
            (true, false) => self.kv_round(rows, c.pooled),
            (true, true) => self.index_round(rows, c.pooled),
        }
        self.store_compressed(rows, ratio, c.pooled, c.cache);
        self.store_frontier(rows, c.kv, c.gate, c.frontier);
    }

    // Indexer -----------------------------------------------------------------

    /// For the rows of the tile, the score of every visible index row:
    /// `score[c] = Σ_h w[h] * scale * max(0, iq[h] · ik[c])` with
    /// `scale = index_dim^-0.5 * n_index_heads^-0.5`. `cache`:
    /// `[1, n_tokens / 4, index_dim]`, `scores`: f32, see [`ScoreTile`].
    fn index_scores(
        &mut self,
        rows: &Self::Rows,
        inputs: IndexScores<'_, Self::Buffer>,
        scores: &mut Self::Buffer,
    );

    /// For the rows of the tile, the indices of the `index_top_k` largest scores
    /// among the visible rows (ties: lowest index), ascending; all visible rows
    /// when there are no more. `selected`: u32 `[n_rows, index_top_k]`.
    fn top_k(
        &mut self,
        rows: &Self::Rows,
        tile: ScoreTile,
        scores: &Self::Buffer,
        selected: &mut Self::Buffer,
    );

    /// `index_scores` and `top_k` for all rows, `score_rows` at a time.
    fn index_select(&mut self, rows: &Self::Rows, s: IndexSelect<'_, Self::Buffer>) {
        for start in (0..s.n_rows).step_by(s.score_rows) {
            let tile = ScoreTile {
                rows: start..(start + s.score_rows).min(s.n_rows),
                stride: s.stride,
            };
            let inputs = IndexScores {
                tile: tile.clone(),
                queries: s.queries,
                weights: s.weights,
                cache: s.cache,
            };
            self.index_scores(rows, inputs, s.scores);
            self.top_k(rows, tile, s.scores, s.selected);
        }
    }

    // Attention ---------------------------------------------------------------

    /// Attention with sinks over the window and the compressed rows (model.md
    /// 5.2); K and V are the same row, shared by all heads. The window of row `r` are
    /// the positions from `window_start[r]` to the segment's first, which lie in the
    /// slot's ring, and the rows of `kv` from the segment's first that is not older
    /// than `window_start[r]` to `see_end[r]`. Scores are scaled by
    /// `head_dim^-0.5`; the sink, unscaled, enters the denominator only.
    /// `out`: f32 `[n_rows, n_heads * head_dim]`.
    fn attend(
        &mut self,
        rows: &Self::Rows,
        inputs: Attend<'_, Self::Buffer, Self::Weight>,
        out: &mut Self::Buffer,
    );

    /// The attention sublayer. What it leaves in other buffers of `scratch` than `y`
    /// is unspecified.
    fn attention(
        &mut self,
        rows: &Self::Rows,
        sublayer: AttentionSublayer<'_, Self::Buffer, Self::Weight>,
    ) {
        forward::attention(self, rows, sublayer);
    }

    // Experts -----------------------------------------------------------------

    /// `scores = sqrt(softplus(scores))`, in place. f32 `[n_rows, n_experts]`.
    fn router_scores(&mut self, rows: &Self::Rows, scores: &mut Self::Buffer);

    /// Experts looked up by token id; weights are the scores normalised over
    /// the chosen ones, times `expert_scale`.
    fn route_hash(
        &mut self,
        rows: &Self::Rows,
        ids: &Self::Weight,
        scores: &Self::Buffer,
        routes: &mut Routes<Self::Buffer>,
    );

    /// The `n_experts_used` largest of `scores + bias` (ties: lowest id), in
    /// descending order; weights as in `route_hash`, without the bias.
    fn route_top_k(
        &mut self,
        rows: &Self::Rows,
        bias: &Self::Weight,
        scores: &Self::Buffer,
        routes: &mut Routes<Self::Buffer>,
    );

    /// `hidden[r, i] = weight[r, i] * silu(min(g, clamp)) * clamp(u, ±clamp)`
    /// with `g`, `u` the products of `x[r]` with the gate and up matrices of
    /// expert `experts[r, i]`. `hidden`: f32 `[n_rows, n_experts_used * expert_dim]`.
    fn experts_gate_up(
        &mut self,
        rows: &Self::Rows,
        inputs: ExpertsGateUp<'_, Self::Buffer, Self::Weight>,
        hidden: &mut Self::Buffer,
    );

    /// `out[r] = Σ_i W_{experts[r, i]} hidden[r, i]`. `out`: f32 `[n_rows, n_embd]`.
    fn experts_down(
        &mut self,
        rows: &Self::Rows,
        down: &Self::Weight,
        hidden: &Self::Buffer,
        routes: &Routes<Self::Buffer>,
        out: &mut Self::Buffer,
    );

    /// The shared expert's hidden layer: as `experts_gate_up` with one expert
    /// of weight 1. `hidden`: f32 `[n_rows, expert_dim]`.
    fn gate_up(
        &mut self,
        rows: &Self::Rows,
        inputs: GateUp<'_, Self::Buffer, Self::Weight>,
        hidden: &mut Self::Buffer,
    );

    /// The experts sublayer: router, routed experts, shared expert. What it leaves in
    /// other buffers of `scratch` than `y` is unspecified.
    fn experts(
        &mut self,
        rows: &Self::Rows,
        sublayer: ExpertsSublayer<'_, Self::Buffer, Self::Weight>,
    ) {
        forward::experts(self, rows, sublayer);
    }
}
