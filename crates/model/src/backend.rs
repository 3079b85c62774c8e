//! The `Backend` trait: every operation the network is made of.
//!
//! A backend has kernels and memory. It has no layer loop, no tensor names and
//! no numbers of the geometry other than those it is given. [`crate::forward`]
//! calls these methods in a straight line.
//!
//! # Record, then submit
//!
//! Ops record and return nothing; they may run at once (CPU) or when
//! [`Backend::submit`] is called. Everything that differs between two steps of
//! the same number of rows is read from [`Backend::Rows`] on the device, and no
//! op allocates, so a recorded step can be replayed for other rows.
//!
//! # Shapes
//!
//! A [`Backend::Buffer`] is `[n_slots, n_rows, width]`, outermost first, of one
//! [`ElementType`]. Activations have one slot; row `r` belongs to row `r` of the
//! step. Caches have one slot for every sequence. Ops process the rows of
//! `rows` only and leave the rest of a buffer alone. Widths written below use
//! the names of [`Geometry`].
//!
//! # Fused ops
//!
//! A method with a default body is a *fused* op: the default is its meaning,
//! in primitive ops. [`crate::Unfused`] restores the defaults.

use std::ops::Range;

use ds4_formats::Tensor;

use crate::geometry::{Geometry, LayerKind};
use crate::rope::RopeTable;
use crate::rows::RowsImage;
use crate::weights::{Compressor, HyperConnection};

/// Element of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit float: every activation.
    F32,
    /// The upper half of a 32-bit float, rounded to nearest even: cache rows.
    Bf16,
    /// 32-bit index: expert ids, selected rows.
    U32,
}

impl ElementType {
    /// Size of one element.
    pub fn n_bytes(self) -> usize {
        match self {
            ElementType::F32 | ElementType::U32 => 4,
            ElementType::Bf16 => 2,
        }
    }
}

/// Shape of a buffer, outermost dimension first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences; 1 for activations.
    pub n_slots: usize,
    /// Rows of one slot.
    pub n_rows: usize,
    /// Elements of one row.
    pub width: usize,
}

impl Shape {
    /// Shape of an activation, `[1, n_rows, width]`.
    pub fn rows(n_rows: usize, width: usize) -> Shape {
        Shape {
            n_slots: 1,
            n_rows,
            width,
        }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        self.n_slots * self.n_rows * self.width
    }

    /// Whether there are no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// How a weight is used, which decides how a backend keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightRole {
    /// `[n_out, n_in]`, applied as `y = W x`; activations may be quantised to int8.
    Matrix,
    /// As `Matrix`, but activations stay in f32: hyper-connections, router,
    /// compressors, whose products decide gates, selections and softmax weights.
    PreciseMatrix,
    /// `[n_experts, n_out, n_in]`.
    Experts,
    /// `[n]` or `[n_rows, n]`, small, used element by element in f32.
    Vector,
    /// `[n_vocab, n_embd]`, one row read for a token.
    Embedding,
    /// `[n_vocab, n_experts_used]` of i32.
    Ids,
}

/// Why a device could not do what was asked. Recorded work that was not yet
/// submitted is lost; buffers keep what the last successful submit left.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The device has no room.
    #[error("out of device memory: {what} needs {n_bytes} bytes")]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// Its size.
        n_bytes: usize,
    },
    /// The device or its driver failed.
    #[error("device failure: {0}")]
    Device(String),
}

/// A place in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Slot.
    pub slot: usize,
    /// Row within the slot.
    pub row: usize,
}

/// Experts chosen for every row, and their weights.
#[derive(Debug)]
pub struct Routes<Buffer> {
    /// Expert ids, u32 `[n_rows, n_experts_used]`.
    pub experts: Buffer,
    /// Mixing weights, f32 `[n_rows, n_experts_used]`.
    pub weights: Buffer,
}

/// The compressed rows that a query attends to.
#[derive(Debug)]
pub enum CompressedRows<'a, Buffer> {
    /// None: a sliding layer.
    None,
    /// All visible ones of `cache`, `[n_slots, n_rows, head_dim]`.
    All {
        /// The cache.
        cache: &'a Buffer,
        /// Tokens for each row.
        ratio: usize,
    },
    /// The first `min(n_visible, width)` entries of `selected`, u32
    /// `[n_rows, index_top_k]`, index rows of `cache`.
    Selected {
        /// The cache.
        cache: &'a Buffer,
        /// Tokens for each row.
        ratio: usize,
        /// Indices, ascending.
        selected: &'a Buffer,
    },
}

/// Direction of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotation {
    /// By the angle.
    Forward,
    /// By minus the angle: the attention output carries its keys' rotation.
    Inverse,
}

/// The operations of the network on one device. See the [module](self) for the
/// rules that all of them obey.
pub trait Backend {
    /// Memory on the device.
    type Buffer;
    /// A weight in the form the device wants it.
    type Weight;
    /// A [`RowsImage`] on the device.
    type Rows;

    /// The geometry the kernels were specialised to.
    fn geometry(&self) -> &Geometry;

    // Memory ------------------------------------------------------------------

    /// Takes a weight. `tensor.ne` was checked by the caller against the
    /// geometry; any type that `ds4_formats` decodes is accepted, except that
    /// `Ids` are I32.
    fn upload(&mut self, role: WeightRole, tensor: Tensor) -> Result<Self::Weight, BackendError>;

    /// Allocates a zeroed buffer. Called while a session opens, never later.
    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Self::Buffer, BackendError>;

    /// Allocates the per-step numbers of up to `capacity` rows.
    fn alloc_rows(&mut self, capacity: usize) -> Result<Self::Rows, BackendError>;

    /// Replaces the per-step numbers; ops recorded from now on see them.
    fn write_rows(&mut self, rows: &mut Self::Rows, image: &RowsImage);

    /// Writes whole rows (little-endian elements) from `at` on.
    fn write(
        &mut self,
        buffer: &mut Self::Buffer,
        at: Place,
        bytes: &[u8],
    ) -> Result<(), BackendError>;

    /// Reads whole rows (little-endian elements) from `at` on, after everything
    /// recorded so far; `bytes` says how many.
    fn read(
        &mut self,
        buffer: &Self::Buffer,
        at: Place,
        bytes: &mut [u8],
    ) -> Result<(), BackendError>;

    /// Copies `n_rows` rows inside a buffer, in order with the recorded ops.
    /// The ranges do not overlap.
    fn copy_rows(&mut self, buffer: &mut Self::Buffer, from: Place, to: Place, n_rows: usize);

    /// Starts what was recorded and says whether everything before it succeeded.
    fn submit(&mut self) -> Result<(), BackendError>;

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
        hc: &HyperConnection<Self::Weight>,
        norm: &Self::Weight,
        gates: &mut Self::Buffer,
        x: &mut Self::Buffer,
    ) {
        self.hc_gates(rows, streams, hc, gates);
        self.hc_pre(rows, streams, gates, x);
        self.rms_norm(rows, norm, x);
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
    /// row's tokens, applied to their projections. `kv`, `gate`: f32
    /// `[n_rows, compressor_dim]`, the gate with its position bias; older tokens
    /// come from `frontier` (see [`Backend::store_frontier`]). A ratio-4 row
    /// pools channels `[0, d)` of the 4 tokens before its window and `[d, 2d)`
    /// of its window's 4; tokens before position 0 do not take part.
    /// `pooled`: f32 `[n_rows, d]`; zero for rows that complete nothing.
    fn pool(
        &mut self,
        rows: &Self::Rows,
        kind: LayerKind,
        kv: &Self::Buffer,
        gate: &Self::Buffer,
        frontier: &Self::Buffer,
        pooled: &mut Self::Buffer,
    );

    /// Stores `pooled` at its index in the slot's cache, for every row that
    /// completes one. `cache`: `[n_slots, capacity / ratio, d]`.
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
    fn compress(
        &mut self,
        rows: &Self::Rows,
        compressor: &Compressor<Self::Weight>,
        rounded: bool,
        kv: &Self::Buffer,
        gate: &mut Self::Buffer,
        pooled: &mut Self::Buffer,
        frontier: &mut Self::Buffer,
        cache: &mut Self::Buffer,
    ) {
        let ratio = compressor.kind.ratio().expect("a compressed layer");
        let table = RopeTable::start_of(ratio);
        self.add_position_bias(rows, &compressor.ape, ratio, gate);
        self.pool(rows, compressor.kind, kv, gate, frontier, pooled);
        self.rms_norm(rows, &compressor.norm, pooled);
        self.rope(rows, table, Rotation::Forward, compressor.row_dim, pooled);
        match (rounded, compressor.index) {
            (false, _) => {}
            (true, false) => self.kv_round(rows, pooled),
            (true, true) => self.index_round(rows, pooled),
        }
        self.store_compressed(rows, ratio, pooled, cache);
        self.store_frontier(rows, kv, gate, frontier);
    }

    // Indexer -----------------------------------------------------------------

    /// For the rows of `range`, the score of every visible index row:
    /// `score[c] = Σ_h w[h] * scale * max(0, iq[h] · ik[c])` with
    /// `scale = index_dim^-0.5 * n_index_heads^-0.5`. `iq`: f32
    /// `[n_rows, n_index_heads * index_dim]`, `weights`: f32
    /// `[n_rows, n_index_heads]`, `cache`: `[n_slots, capacity / 4, index_dim]`,
    /// `scores`: f32 `[score_rows, capacity / 4]`, row `r - range.start`.
    fn index_scores(
        &mut self,
        rows: &Self::Rows,
        range: Range<usize>,
        iq: &Self::Buffer,
        weights: &Self::Buffer,
        cache: &Self::Buffer,
        scores: &mut Self::Buffer,
    );

    /// For the rows of `range`, the indices of the `index_top_k` largest scores
    /// among the visible rows (ties: lowest index), ascending; all visible rows
    /// when there are no more. `selected`: u32 `[n_rows, index_top_k]`.
    fn top_k(
        &mut self,
        rows: &Self::Rows,
        range: Range<usize>,
        scores: &Self::Buffer,
        selected: &mut Self::Buffer,
    );

    /// `index_scores` and `top_k` for all rows, `score_rows` at a time.
    fn index_select(
        &mut self,
        rows: &Self::Rows,
        n_rows: usize,
        score_rows: usize,
        iq: &Self::Buffer,
        weights: &Self::Buffer,
        cache: &Self::Buffer,
        scores: &mut Self::Buffer,
        selected: &mut Self::Buffer,
    ) {
        for start in (0..n_rows).step_by(score_rows) {
            let range = start..(start + score_rows).min(n_rows);
            self.index_scores(rows, range.clone(), iq, weights, cache, scores);
            self.top_k(rows, range, scores, selected);
        }
    }

    // Attention ---------------------------------------------------------------

    /// Attention with sinks over the window and the compressed rows (model.md
    /// 5.2); K and V are the same row, shared by all heads. Window rows are the
    /// positions `max(0, t - window + 1) ..= t`: from row `first_row` on they are
    /// rows of `kv`, before it rows of the slot's `ring` (`[n_slots, n_ring,
    /// head_dim]`, at `position % n_ring`). Scores are scaled by
    /// `head_dim^-0.5`; the sink, unscaled, enters the denominator only.
    /// `q`, `out`: f32 `[n_rows, n_heads * head_dim]`, `kv`: f32
    /// `[n_rows, head_dim]`, `sinks`: `[n_heads]`.
    fn attend(
        &mut self,
        rows: &Self::Rows,
        q: &Self::Buffer,
        kv: &Self::Buffer,
        ring: &Self::Buffer,
        compressed: CompressedRows<'_, Self::Buffer>,
        sinks: &Self::Weight,
        out: &mut Self::Buffer,
    );

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
        gate: &Self::Weight,
        up: &Self::Weight,
        clamp: f32,
        x: &Self::Buffer,
        routes: &Routes<Self::Buffer>,
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
        gate: &Self::Weight,
        up: &Self::Weight,
        clamp: f32,
        x: &Self::Buffer,
        hidden: &mut Self::Buffer,
    );
}
