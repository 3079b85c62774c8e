//! What the ops of a [`crate::Backend`] are given: elements, shapes, places,
//! recordings, and the operands of ops that take many.

use std::ops::Range;

use crate::geometry::LayerKind;
use crate::session::{LayerCache, Scratch, StepShape};
use crate::weights::{Compressor, HyperConnection, Layer};

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

/// Why a device could not do what was asked. The step in which it happened is
/// lost, and with it what its slots held; other slots keep what they held.
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
    /// What the device would run is not to be had, such as machine code without a compiler.
    #[error("{0}")]
    NoCode(String),
    /// The device is gone for this process: every later call fails too.
    #[error(
        "the device is lost to this program, with the slots on it; files are as they were: {0}"
    )]
    Lost(String),
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
    /// All visible ones of `cache`, `[1, n_tokens / ratio, head_dim]`.
    All {
        /// The cache.
        cache: &'a Buffer,
        /// Tokens for each row.
        ratio: usize,
    },
    /// The first `min(n_visible, width)` entries of `selected`, u32
    /// `[n_rows, index_top_k]`, compressed rows of the row's slot.
    Selected {
        /// The cache.
        cache: &'a Buffer,
        /// Tokens for each row.
        ratio: usize,
        /// Numbers of rows, ascending.
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

/// What a backend asks of the steps it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of a prefill step that make good use of the device.
    pub prefill_rows: usize,
    /// Most bytes that the indexer's scores of one step take; more rows are scored in
    /// turns. One row is scored whatever it takes.
    pub score_bytes: usize,
    /// Whether [`RowsImage`](crate::RowsImage)s carry rotary angles.
    pub host_angles: bool,
}

impl Default for Limits {
    /// Those of a processor.
    fn default() -> Limits {
        Limits {
            prefill_rows: 512,
            score_bytes: 64 << 20,
            host_angles: true,
        }
    }
}

/// Which op sequence a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The network's: [`crate::forward`].
    Backbone,
    /// One of a drafter's, which numbers them as it likes.
    Draft(u8),
}

/// Names a recording: steps of the same key differ in their rows' numbers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// The session whose buffers the ops use; no two sessions of a process have the
    /// same number.
    pub session: u64,
    /// The op sequence.
    pub pass: Pass,
    /// The numbers that choose what is recorded.
    pub shape: StepShape,
}

/// What a backend does with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recording {
    /// It wants the ops.
    Record,
    /// It has them and will replay them: no op is called.
    Replay,
}

/// A read of whole rows.
#[derive(Debug)]
pub struct ReadPart<'a, Buffer> {
    /// From here.
    pub buffer: &'a Buffer,
    /// From this row on.
    pub at: Place,
    /// Little-endian elements; the length says how many rows.
    pub bytes: &'a mut [u8],
}

/// A write of whole rows.
#[derive(Debug)]
pub struct WritePart<'a, Buffer> {
    /// To here.
    pub buffer: &'a mut Buffer,
    /// Little-endian elements of whole rows, each piece from its place on.
    pub pieces: Vec<(Place, &'a [u8])>,
}

/// Candidates of an output row; fewer when the vocabulary is smaller.
pub const N_CANDIDATES: usize = 256;

/// What [`Backend::choose`](crate::Backend::choose) finds in a row of logits.
#[derive(Debug)]
pub struct Choice<Buffer> {
    /// Ids of the largest logits, u32 `[n_outputs, min(N_CANDIDATES, n_vocab)]`.
    pub ids: Buffer,
    /// Those logits, f32 of the same shape, descending.
    pub values: Buffer,
    /// Log-sum-exp of all logits at temperature 1 and at the row's, f32 `[n_outputs, 2]`.
    pub lse: Buffer,
}

/// What leads into a sublayer: its hyper-connection and its norm.
#[derive(Debug)]
pub struct Entry<'a, Weight> {
    /// The hyper-connection.
    pub hc: &'a HyperConnection<Weight>,
    /// The norm, `[n_embd]`.
    pub norm: &'a Weight,
}

impl<Weight> Clone for Entry<'_, Weight> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Weight> Copy for Entry<'_, Weight> {}

/// Operands of [`Backend::turn`](crate::Backend::turn).
#[derive(Debug)]
pub struct Turn<'a, Buffer, Weight> {
    /// Output of the sublayer that ends, f32 `[n_rows, n_embd]`.
    pub y: &'a Buffer,
    /// The sublayer that begins.
    pub next: Entry<'a, Weight>,
    /// Gates of the sublayer that ends, then of the one that begins.
    pub gates: &'a mut Buffer,
    /// The streams.
    pub streams: &'a mut Buffer,
    /// Input of the sublayer that begins, f32 `[n_rows, n_embd]`.
    pub x: &'a mut Buffer,
}

/// Inputs of [`Backend::pool`](crate::Backend::pool).
#[derive(Debug)]
pub struct Pool<'a, Buffer> {
    /// Kind of the layer.
    pub kind: LayerKind,
    /// Projections, f32 `[n_rows, compressor_dim]`.
    pub kv: &'a Buffer,
    /// Gates with their position bias, f32 `[n_rows, compressor_dim]`.
    pub gate: &'a Buffer,
    /// Older tokens; see [`Backend::store_frontier`](crate::Backend::store_frontier).
    pub frontier: &'a Buffer,
}

/// Operands of [`Backend::compress`](crate::Backend::compress).
#[derive(Debug)]
pub struct Compress<'a, Buffer, Weight> {
    /// The compressor.
    pub compressor: &'a Compressor<Weight>,
    /// Whether cache rows are rounded.
    pub rounded: bool,
    /// Projections, f32 `[n_rows, compressor_dim]`.
    pub kv: &'a Buffer,
    /// Gates, f32 `[n_rows, compressor_dim]`; unspecified afterwards.
    pub gate: &'a mut Buffer,
    /// Scratch, f32 `[n_rows, row_dim]`.
    pub pooled: &'a mut Buffer,
    /// The frontier ring.
    pub frontier: &'a mut Buffer,
    /// The cache.
    pub cache: &'a mut Buffer,
}

/// The rows that are scored at a time, and where their scores lie: those of row `r`
/// from element `(r - rows.start) * stride` of `scores` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreTile {
    /// The rows.
    pub rows: Range<usize>,
    /// Elements of `scores` for each; no row sees more index rows.
    pub stride: usize,
}

/// Inputs of [`Backend::index_scores`](crate::Backend::index_scores).
#[derive(Debug)]
pub struct IndexScores<'a, Buffer> {
    /// The rows.
    pub tile: ScoreTile,
    /// Queries, f32 `[n_rows, n_index_heads * index_dim]`.
    pub queries: &'a Buffer,
    /// Head weights, f32 `[n_rows, n_index_heads]`.
    pub weights: &'a Buffer,
    /// Index rows.
    pub cache: &'a Buffer,
}

/// Operands of [`Backend::index_select`](crate::Backend::index_select).
#[derive(Debug)]
pub struct IndexSelect<'a, Buffer> {
    /// Rows of the step.
    pub n_rows: usize,
    /// Rows scored at a time.
    pub score_rows: usize,
    /// Elements of `scores` for each of them.
    pub stride: usize,
    /// Queries, f32 `[n_rows, n_index_heads * index_dim]`.
    pub queries: &'a Buffer,
    /// Head weights, f32 `[n_rows, n_index_heads]`.
    pub weights: &'a Buffer,
    /// Index rows.
    pub cache: &'a Buffer,
    /// Scratch, f32, at least `score_rows * stride` elements.
    pub scores: &'a mut Buffer,
    /// The chosen rows, u32 `[n_rows, index_top_k]`.
    pub selected: &'a mut Buffer,
}

/// Inputs of [`Backend::attend`](crate::Backend::attend).
#[derive(Debug)]
pub struct Attend<'a, Buffer, Weight> {
    /// Queries, f32 `[n_rows, n_heads * head_dim]`.
    pub q: &'a Buffer,
    /// Window rows of the batch, f32 `[n_rows, head_dim]`.
    pub kv: &'a Buffer,
    /// Older window rows, `[n_slots, n_ring, head_dim]`, at `position % n_ring`.
    pub ring: &'a Buffer,
    /// Compressed rows.
    pub compressed: CompressedRows<'a, Buffer>,
    /// `[n_heads]`.
    pub sinks: &'a Weight,
}

/// Inputs of [`Backend::experts_gate_up`](crate::Backend::experts_gate_up).
#[derive(Debug)]
pub struct ExpertsGateUp<'a, Buffer, Weight> {
    /// `[n_experts, expert_dim, n_embd]`.
    pub gate: &'a Weight,
    /// `[n_experts, expert_dim, n_embd]`.
    pub up: &'a Weight,
    /// Limit of the products.
    pub clamp: f32,
    /// f32 `[n_rows, n_embd]`.
    pub x: &'a Buffer,
    /// The experts of every row.
    pub routes: &'a Routes<Buffer>,
}

/// Inputs of [`Backend::gate_up`](crate::Backend::gate_up).
#[derive(Debug)]
pub struct GateUp<'a, Buffer, Weight> {
    /// `[expert_dim, n_embd]`.
    pub gate: &'a Weight,
    /// `[expert_dim, n_embd]`.
    pub up: &'a Weight,
    /// Limit of the products.
    pub clamp: f32,
    /// f32 `[n_rows, n_embd]`.
    pub x: &'a Buffer,
}

/// Operands of [`Backend::attention`](crate::Backend::attention): from `scratch.x` to `scratch.y`.
#[derive(Debug)]
pub struct AttentionSublayer<'a, Buffer, Weight> {
    /// The layer.
    pub layer: &'a Layer<Weight>,
    /// Its caches.
    pub cache: &'a mut LayerCache<Buffer>,
    /// Activations.
    pub scratch: &'a mut Scratch<Buffer>,
    /// The step.
    pub step: &'a StepShape,
}

/// Operands of [`Backend::experts`](crate::Backend::experts): from `scratch.x` to `scratch.y`.
#[derive(Debug)]
pub struct ExpertsSublayer<'a, Buffer, Weight> {
    /// The layer.
    pub layer: &'a Layer<Weight>,
    /// Activations.
    pub scratch: &'a mut Scratch<Buffer>,
    /// The step.
    pub step: &'a StepShape,
}
