//! A session: the caches of a fixed number of slots, the scratch of a step, and
//! what each slot holds. Everything is allocated when it opens.
//!
//! # What a slot holds
//!
//! For a slot of `len` tokens, every layer keeps
//! - the **window ring**: the rows of the last tokens, at `position % n_ring`;
//! - **compressed rows** `0 .. len / ratio`, append-only, and for ratio-4
//!   layers as many **index rows**;
//! - the **frontier ring**: the projections (`kv`, then `gate`) of the tokens
//!   whose compressed row is not finished, at `position % n_ring`.
//!
//! Rings are [`SessionShape::rewind_rows`] longer than the network looks back, so
//! that a slot can be cut back by that many tokens at any time. Further back it
//! returns to a stored [`Frontier`].

use std::sync::Arc;

use crate::backend::{Backend, BackendError, ElementType, Place, Routes, Shape};
use crate::forward::forward;
use crate::geometry::{CSA_RATIO, Geometry, LayerKind};
use crate::rope::RopeFrequencies;
use crate::rows::{Batch, Outputs, RowsImage};
use crate::weights::Network;

/// Default of [`SessionShape::rewind_rows`].
pub const REWIND_ROWS: usize = 64;
/// Most bytes the indexer's scores of one step take; more rows are scored in turns.
pub const MAX_SCORE_BYTES: usize = 64 << 20;

/// Whether cache rows are rounded as the model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum CacheRounding {
    /// E4M3 attention rows, E2M1 index rows, stored as bf16 without loss.
    #[default]
    Official,
    /// None, stored as f32: for comparison with implementations that do not round.
    Off,
}

impl CacheRounding {
    /// Element of cache rows.
    pub fn element(self) -> ElementType {
        match self {
            CacheRounding::Official => ElementType::Bf16,
            CacheRounding::Off => ElementType::F32,
        }
    }
}

/// The sizes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionShape {
    /// Slots.
    pub n_slots: usize,
    /// Tokens that one slot can hold.
    pub capacity: usize,
    /// Rows of the largest step.
    pub max_rows: usize,
    /// Rows of the largest step that need logits.
    pub max_outputs: usize,
    /// Tokens by which a slot can be cut back without a stored frontier.
    pub rewind_rows: usize,
    /// Rounding of cache rows.
    pub rounding: CacheRounding,
}

/// Bytes a session takes on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// All slots.
    pub slots_bytes: usize,
    /// Scratch of a step.
    pub scratch_bytes: usize,
}

impl MemoryPlan {
    /// Everything.
    pub fn total_bytes(&self) -> usize {
        self.slots_bytes + self.scratch_bytes
    }
}

/// The host-known numbers of a step, which choose what is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows, padding included.
    pub n_rows: usize,
    /// Rows that go through the head.
    pub n_outputs: usize,
    /// Whether any row sees more compressed rows than the indexer selects.
    pub selects: bool,
    /// Rows scored at a time.
    pub score_rows: usize,
    /// Whether cache rows are rounded.
    pub rounded: bool,
}

/// The caches of one layer, for all slots.
#[derive(Debug)]
pub struct LayerCache<Buffer> {
    /// `[n_slots, window + rewind_rows, head_dim]`.
    pub window: Buffer,
    /// Of layers with a compressor.
    pub compressed: Option<CompressedCache<Buffer>>,
}

/// Compressed rows and their unfinished group.
#[derive(Debug)]
pub struct CompressedCache<Buffer> {
    /// `[n_slots, capacity / ratio, head_dim]`.
    pub rows: Buffer,
    /// f32 `[n_slots, n_pooled + rewind_rows, 2 * compressor_dim]`.
    pub frontier: Buffer,
    /// Of ratio-4 layers.
    pub index: Option<IndexCache<Buffer>>,
}

/// Index rows and their unfinished group.
#[derive(Debug)]
pub struct IndexCache<Buffer> {
    /// `[n_slots, capacity / 4, index_dim]`.
    pub rows: Buffer,
    /// f32 `[n_slots, n_pooled + rewind_rows, 2 * compressor_dim]`.
    pub frontier: Buffer,
}

/// Activations of a compressor.
#[derive(Debug)]
pub struct CompressorScratch<Buffer> {
    /// `[max_rows, compressor_dim]`.
    pub kv: Buffer,
    /// `[max_rows, compressor_dim]`.
    pub gate: Buffer,
    /// `[max_rows, row_dim]`.
    pub pooled: Buffer,
}

/// Activations of an indexer.
#[derive(Debug)]
pub struct IndexScratch<Buffer> {
    /// Its compressor's.
    pub rows: CompressorScratch<Buffer>,
    /// Queries, `[max_rows, n_index_heads * index_dim]`.
    pub q: Buffer,
    /// Head weights, `[max_rows, n_index_heads]`.
    pub weights: Buffer,
    /// `[score_rows, capacity / 4]`.
    pub scores: Buffer,
    /// u32 `[max_rows, index_top_k]`.
    pub selected: Buffer,
}

/// Activations of a step, all f32 and `[max_rows, width]` unless said.
#[derive(Debug)]
pub struct Scratch<Buffer> {
    /// `n_hc * n_embd`, stream-major.
    pub streams: Buffer,
    /// `n_gates`.
    pub gates: Buffer,
    /// Input of a sublayer, `n_embd`.
    pub x: Buffer,
    /// Output of a sublayer, `n_embd`.
    pub y: Buffer,
    /// `q_rank`.
    pub qr: Buffer,
    /// `n_heads * head_dim`.
    pub q: Buffer,
    /// `head_dim`.
    pub kv: Buffer,
    /// `n_heads * head_dim`.
    pub o: Buffer,
    /// `n_out_groups * out_rank`.
    pub u: Buffer,
    /// Present when the model has ratio-4 layers.
    pub csa: Option<CompressorScratch<Buffer>>,
    /// Present when the model has ratio-128 layers.
    pub hca: Option<CompressorScratch<Buffer>>,
    /// Present when the model has ratio-4 layers.
    pub index: Option<IndexScratch<Buffer>>,
    /// `n_experts`.
    pub router: Buffer,
    /// `n_experts_used`.
    pub routes: Routes<Buffer>,
    /// `n_experts_used * expert_dim`.
    pub hidden: Buffer,
    /// `expert_dim`.
    pub shared_hidden: Buffer,
    /// `n_embd`.
    pub shared_y: Buffer,
    /// `[max_outputs, n_hc * n_embd]`.
    pub output_streams: Buffer,
    /// `[max_outputs, n_embd]`.
    pub h: Buffer,
    /// `[max_outputs, n_vocab]`.
    pub logits: Buffer,
}

type Alloc<'a, Buffer, E> = &'a mut dyn FnMut(ElementType, Shape) -> Result<Buffer, E>;

impl SessionShape {
    /// Bytes a session of this shape takes, computed by the walk that
    /// allocates it.
    pub fn plan(&self, geometry: &Geometry) -> MemoryPlan {
        let n_bytes = std::cell::Cell::new(0);
        let mut measure = |element: ElementType, shape: Shape| {
            n_bytes.set(n_bytes.get() + element.n_bytes() * shape.len());
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(_) = self.caches(geometry, &mut measure);
        let slots_bytes = n_bytes.take();
        let Ok(_) = self.scratch(geometry, &mut measure);
        let scratch_bytes = n_bytes.take();
        MemoryPlan {
            slots_bytes,
            scratch_bytes: scratch_bytes
                + RowsImage::n_bytes(geometry, self.max_rows)
                + RowsImage::n_bytes(geometry, self.max_outputs),
        }
    }

    /// Rows scored at a time, so that their scores stay under [`MAX_SCORE_BYTES`].
    pub fn score_rows(&self) -> usize {
        let row_bytes = self.capacity.div_ceil(CSA_RATIO).max(1) * 4;
        (MAX_SCORE_BYTES / row_bytes).clamp(1, self.max_rows)
    }

    fn caches<Buffer, E>(
        &self,
        g: &Geometry,
        alloc: Alloc<'_, Buffer, E>,
    ) -> Result<Vec<LayerCache<Buffer>>, E> {
        let row = self.rounding.element();
        let shape = |n_rows, width| Shape {
            n_slots: self.n_slots,
            n_rows,
            width,
        };
        let frontier = |kind: LayerKind, row_dim| {
            shape(
                kind.n_pooled() + self.rewind_rows,
                2 * kind.compressor_dim(row_dim),
            )
        };
        g.layers
            .iter()
            .map(|&kind| {
                let n_rows = Geometry::n_compressed(kind, self.capacity);
                Ok(LayerCache {
                    window: alloc(row, shape(g.window + self.rewind_rows, g.head_dim))?,
                    compressed: match kind {
                        LayerKind::Sliding => None,
                        _ => Some(CompressedCache {
                            rows: alloc(row, shape(n_rows, g.head_dim))?,
                            frontier: alloc(ElementType::F32, frontier(kind, g.head_dim))?,
                            index: match kind {
                                LayerKind::Csa => Some(IndexCache {
                                    rows: alloc(row, shape(n_rows, g.index_dim))?,
                                    frontier: alloc(ElementType::F32, frontier(kind, g.index_dim))?,
                                }),
                                _ => None,
                            },
                        }),
                    },
                })
            })
            .collect()
    }

    fn scratch<Buffer, E>(
        &self,
        g: &Geometry,
        alloc: Alloc<'_, Buffer, E>,
    ) -> Result<Scratch<Buffer>, E> {
        let n = self.max_rows;
        let mut rows = |n_rows, width| alloc(ElementType::F32, Shape::rows(n_rows, width));
        let mut compressor = |kind: LayerKind, row_dim| {
            g.layers
                .contains(&kind)
                .then(|| {
                    Ok(CompressorScratch {
                        kv: rows(n, kind.compressor_dim(row_dim))?,
                        gate: rows(n, kind.compressor_dim(row_dim))?,
                        pooled: rows(n, row_dim)?,
                    })
                })
                .transpose()
        };
        let csa = compressor(LayerKind::Csa, g.head_dim)?;
        let hca = compressor(LayerKind::Hca, g.head_dim)?;
        let index = match compressor(LayerKind::Csa, g.index_dim)? {
            None => None,
            Some(compressed) => Some(IndexScratch {
                rows: compressed,
                q: rows(n, g.n_index_heads * g.index_dim)?,
                weights: rows(n, g.n_index_heads)?,
                scores: rows(self.score_rows(), self.capacity / CSA_RATIO)?,
                selected: alloc(ElementType::U32, Shape::rows(n, g.index_top_k))?,
            }),
        };
        let routes = Routes {
            experts: alloc(ElementType::U32, Shape::rows(n, g.n_experts_used))?,
            weights: alloc(ElementType::F32, Shape::rows(n, g.n_experts_used))?,
        };
        let mut rows = |n_rows, width| alloc(ElementType::F32, Shape::rows(n_rows, width));
        Ok(Scratch {
            streams: rows(n, g.n_hc * g.n_embd)?,
            gates: rows(n, g.n_gates())?,
            x: rows(n, g.n_embd)?,
            y: rows(n, g.n_embd)?,
            qr: rows(n, g.q_rank)?,
            q: rows(n, g.n_heads * g.head_dim)?,
            kv: rows(n, g.head_dim)?,
            o: rows(n, g.n_heads * g.head_dim)?,
            u: rows(n, g.n_out_groups * g.out_rank)?,
            csa,
            hca,
            index,
            router: rows(n, g.n_experts)?,
            routes,
            hidden: rows(n, g.n_experts_used * g.expert_dim)?,
            shared_hidden: rows(n, g.expert_dim)?,
            shared_y: rows(n, g.n_embd)?,
            output_streams: rows(self.max_outputs, g.n_hc * g.n_embd)?,
            h: rows(self.max_outputs, g.n_embd)?,
            logits: rows(self.max_outputs, g.n_vocab)?,
        })
    }
}

/// What the host knows of a slot.
#[derive(Clone, Debug, Default)]
struct Timeline {
    /// Tokens in the caches.
    len: usize,
    /// Positions below this one were never in the rings: the slot was filled
    /// from a frontier of that length.
    base: usize,
    /// Highest `len` since the rings were last filled from outside; positions
    /// below `high - n_ring` were overwritten.
    high: usize,
    /// Number of cuts so far.
    n_cuts: u64,
    /// (number, length) of the cuts that still matter to older frontiers:
    /// lengths ascend.
    cuts: Vec<(u64, usize)>,
    /// The slot that this one was copied from, while nothing was cut off it since.
    origin: Option<Origin>,
}

/// Where a slot was copied from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    slot: usize,
    /// The other slot's cuts at that time.
    n_cuts: u64,
}

impl Timeline {
    fn cut(&mut self, len: usize) {
        self.n_cuts += 1;
        self.origin = None;
        while self.cuts.last().is_some_and(|(_, l)| *l >= len) {
            self.cuts.pop();
        }
        self.cuts.push((self.n_cuts, len));
        self.len = len;
    }

    /// Shortest length since the cut numbered `since`.
    fn shortest_since(&self, since: u64) -> usize {
        self.cuts
            .iter()
            .find(|(number, _)| *number > since)
            .map_or(usize::MAX, |(_, len)| *len)
    }
}

/// Rows in logical order, independent of rings and of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRows {
    /// Element of the rows.
    pub element: ElementType,
    /// Elements of one row.
    pub width: usize,
    /// Position of the first row (rings) or its index (compressed rows).
    pub first: usize,
    /// The rows, little-endian.
    pub bytes: Vec<u8>,
}

impl StoredRows {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.bytes.len() / (self.width * self.element.n_bytes())
    }
}

/// Which rows of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// Window ring, one row a token.
    Window,
    /// Compressed rows.
    Compressed,
    /// Frontier ring of the compressor, one row a token.
    Frontier,
    /// Index rows.
    Index,
    /// Frontier ring of the index compressor, one row a token.
    IndexFrontier,
}

/// The rings of a slot at one length: enough for [`Session::restore`] to return
/// there while the compressed rows below it are still those of that time. Copies
/// share the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    /// Tokens in the slot at that place.
    pub len: usize,
    layers: Arc<[Vec<(RowKind, StoredRows)>]>,
    slot: usize,
    n_cuts: u64,
}

impl Frontier {
    /// The slot it belongs to.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Bytes of its rows. For Flash: 6.2 MiB at a multiple of 128 tokens from 128
    /// on, and up to 16.7 MiB just before the next one, where the ratio-128 groups
    /// are longest.
    pub fn n_bytes(&self) -> usize {
        let rows = self.layers.iter().flatten();
        rows.map(|(_, stored)| stored.bytes.len()).sum()
    }

    /// The rows of one ring of one layer; `None` when the layer has no such ring.
    pub fn rows(&self, layer: usize, kind: RowKind) -> Option<&StoredRows> {
        let rows = self.layers.get(layer)?;
        let found = rows.iter().find(|(found, _)| *found == kind)?;
        Some(&found.1)
    }
}

/// All of a slot, independent of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Tokens in the slot.
    pub len: usize,
    /// For every layer the window rows, then the frontier rings it has: what
    /// the tokens after `len` still look back to.
    pub rings: Vec<Vec<(RowKind, StoredRows)>>,
    /// For every layer its compressed rows, then its index rows, if it has any.
    pub rows: Vec<Vec<(RowKind, StoredRows)>>,
}

/// Why a step was refused. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The slot is too short for these tokens.
    #[error(
        "the context is full: {len} tokens are in the slot and {n_new} more do not fit in {capacity}"
    )]
    ContextFull {
        /// Tokens in the slot.
        len: usize,
        /// Tokens to be added.
        n_new: usize,
        /// Tokens the slot can hold.
        capacity: usize,
    },
    /// A token is outside the vocabulary.
    #[error("token id {token} is not in the vocabulary of {n_vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Vocabulary entries.
        n_vocab: usize,
    },
    /// The batch is larger than the session was opened for.
    #[error("{what}: {found} in this step, at most {limit} in this session")]
    TooLarge {
        /// Rows, outputs or slots.
        what: &'static str,
        /// Found.
        found: usize,
        /// Accepted.
        limit: usize,
    },
    /// The device failed; the slots of the batch were emptied.
    #[error("the step failed and its slots were emptied: {0}")]
    Backend(#[from] BackendError),
}

/// Why a slot could not be cut back. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewindError {
    /// The target is longer than the slot.
    #[error("cannot rewind to {target}: the slot holds {len} tokens")]
    Ahead {
        /// Tokens asked for.
        target: usize,
        /// Tokens in the slot.
        len: usize,
    },
    /// The rings no longer hold what the target needs.
    #[error("cannot rewind to {target} without its frontier: the rings reach back to {floor}")]
    Gone {
        /// Tokens asked for.
        target: usize,
        /// Shortest length that the rings can return to.
        floor: usize,
    },
    /// The frontier belongs to another slot or to tokens that were replaced.
    #[error("the frontier at {len} tokens is not part of this slot's timeline any more")]
    Stale {
        /// Its length.
        len: usize,
    },
}

/// Why a state could not be imported. The slot was emptied.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The state was made for another geometry, rounding or a longer slot.
    #[error("cannot import this state: {what} is {found}, expected {expected}")]
    Mismatch {
        /// What differs.
        what: String,
        /// Found in the state.
        found: String,
        /// Expected by the session.
        expected: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Slots, scratch and timelines on one backend.
pub struct Session<B: Backend> {
    geometry: Geometry,
    shape: SessionShape,
    frequencies: RopeFrequencies,
    caches: Vec<LayerCache<B::Buffer>>,
    scratch: Scratch<B::Buffer>,
    rows: B::Rows,
    outputs: B::Rows,
    rows_image: RowsImage,
    outputs_image: RowsImage,
    timelines: Vec<Timeline>,
    logits: Vec<f32>,
    logit_bytes: Vec<u8>,
}

impl<B: Backend> Session<B> {
    /// Allocates everything a session of this shape needs.
    pub fn open(backend: &mut B, shape: SessionShape) -> Result<Session<B>, BackendError> {
        let geometry = backend.geometry().clone();
        let mut alloc = |element, shape| backend.alloc(element, shape);
        let caches = shape.caches(&geometry, &mut alloc)?;
        let scratch = shape.scratch(&geometry, &mut alloc)?;
        let n_logits = shape.max_outputs * geometry.n_vocab;
        Ok(Session {
            frequencies: RopeFrequencies::new(&geometry),
            rows: backend.alloc_rows(shape.max_rows)?,
            outputs: backend.alloc_rows(shape.max_outputs)?,
            rows_image: RowsImage::with_capacity(&geometry, shape.max_rows),
            outputs_image: RowsImage::with_capacity(&geometry, shape.max_outputs),
            timelines: vec![Timeline::default(); shape.n_slots],
            logits: Vec::with_capacity(n_logits),
            logit_bytes: vec![0; n_logits * 4],
            caches,
            scratch,
            geometry,
            shape,
        })
    }

    /// Its sizes.
    pub fn shape(&self) -> &SessionShape {
        &self.shape
    }

    /// Tokens in a slot.
    pub fn len(&self, slot: usize) -> usize {
        self.timelines[slot].len
    }

    /// Whether a slot holds nothing.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Appends the batch's tokens to their slots and computes the logits it
    /// asks for, f32 `[n_outputs, n_vocab]`.
    pub fn step(
        &mut self,
        backend: &mut B,
        network: &Network<B::Weight>,
        batch: &Batch,
    ) -> Result<&[f32], StepError> {
        let step = self.prepare(batch)?;
        backend.write_rows(&mut self.rows, &self.rows_image);
        backend.write_rows(&mut self.outputs, &self.outputs_image);
        forward(
            backend,
            network,
            &mut self.caches,
            &mut self.scratch,
            &self.rows,
            &self.outputs,
            &step,
        );
        let bytes = &mut self.logit_bytes[..step.n_outputs * self.geometry.n_vocab * 4];
        let at = Place { slot: 0, row: 0 };
        let done = backend
            .submit()
            .and_then(|()| backend.read(&self.scratch.logits, at, bytes));
        if let Err(error) = done {
            for segment in batch.segments() {
                self.clear(segment.slot);
            }
            return Err(error.into());
        }
        self.logits.clear();
        self.logits.extend(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        );
        for segment in batch.segments() {
            let timeline = &mut self.timelines[segment.slot];
            timeline.len += segment.tokens.len();
            timeline.high = timeline.high.max(timeline.len);
        }
        Ok(&self.logits)
    }

    /// Checks a batch and fills the images.
    fn prepare(&mut self, batch: &Batch) -> Result<StepShape, StepError> {
        let (n_rows, n_outputs) = (batch.n_rows(), batch.n_outputs());
        let limits = [
            ("rows", n_rows, self.shape.max_rows),
            ("rows with logits", n_outputs, self.shape.max_outputs),
        ];
        for (what, found, limit) in limits {
            if found > limit {
                return Err(StepError::TooLarge { what, found, limit });
            }
        }
        for segment in batch.segments() {
            if segment.slot >= self.shape.n_slots {
                return Err(StepError::TooLarge {
                    what: "slot number",
                    found: segment.slot,
                    limit: self.shape.n_slots - 1,
                });
            }
            let len = self.timelines[segment.slot].len;
            if len + segment.tokens.len() > self.shape.capacity {
                return Err(StepError::ContextFull {
                    len,
                    n_new: segment.tokens.len(),
                    capacity: self.shape.capacity,
                });
            }
            let n_vocab = self.geometry.n_vocab;
            if let Some(&token) = segment.tokens.iter().find(|t| **t as usize >= n_vocab) {
                return Err(StepError::Token { token, n_vocab });
            }
        }

        self.rows_image.clear();
        self.outputs_image.clear();
        let mut longest = 0;
        for segment in batch.segments() {
            let first_row = self.rows_image.len();
            let n = segment.tokens.len();
            let len = self.timelines[segment.slot].len;
            self.rows_image
                .push_segment(&self.frequencies, segment.slot, len, &segment.tokens);
            let wanted = match segment.outputs {
                Outputs::None => 0..0,
                Outputs::Last => first_row + n - 1..first_row + n,
                Outputs::All => first_row..first_row + n,
            };
            for row in wanted {
                self.outputs_image.push_from(&self.rows_image, row);
            }
            longest = longest.max(len + n);
        }
        let has_indexer = self.scratch.index.is_some();
        Ok(StepShape {
            n_rows,
            n_outputs,
            selects: has_indexer && longest / CSA_RATIO > self.geometry.index_top_k,
            score_rows: self.shape.score_rows(),
            rounded: self.shape.rounding == CacheRounding::Official,
        })
    }

    /// Empties a slot.
    pub fn clear(&mut self, slot: usize) {
        let timeline = &mut self.timelines[slot];
        timeline.cut(0);
        timeline.base = 0;
        timeline.high = 0;
    }

    /// Shortest length, above zero, that a slot can be cut back to without a
    /// stored frontier.
    pub fn rewind_floor(&self, slot: usize) -> usize {
        let timeline = &self.timelines[slot];
        timeline
            .high
            .saturating_sub(self.shape.rewind_rows)
            .max(timeline.base)
            .min(timeline.len)
    }

    /// Cuts a slot back to its first `len` tokens.
    pub fn rewind(&mut self, slot: usize, len: usize) -> Result<(), RewindError> {
        let found = self.len(slot);
        if len > found {
            return Err(RewindError::Ahead {
                target: len,
                len: found,
            });
        }
        if len == found {
            return Ok(());
        }
        if len == 0 {
            self.clear(slot);
            return Ok(());
        }
        let floor = self.rewind_floor(slot);
        if len < floor {
            return Err(RewindError::Gone { target: len, floor });
        }
        self.timelines[slot].cut(len);
        Ok(())
    }

    /// Makes `to` a copy of `from`; what `to` held is gone.
    pub fn fork(&mut self, backend: &mut B, from: usize, to: usize) {
        if from == to {
            return;
        }
        let timeline = self.timelines[from].clone();
        let place = |slot, row| Place { slot, row };
        for (layer, kind, n_rows) in self.used_rows(&timeline) {
            let buffer = self.buffer_mut(layer, kind);
            backend.copy_rows(buffer, place(from, 0), place(to, 0), n_rows);
        }
        self.clear(to);
        let target = &mut self.timelines[to];
        target.len = timeline.len;
        target.base = timeline.base;
        target.high = timeline.high;
        target.origin = Some(Origin {
            slot: from,
            n_cuts: timeline.n_cuts,
        });
    }

    /// Makes `to` a copy of the frontier's slot as it was there; what `to` held is
    /// gone. The frontier must still hold in its slot, which is left as it is.
    pub fn fork_at(
        &mut self,
        backend: &mut B,
        frontier: &Frontier,
        to: usize,
    ) -> Result<(), RestoreError> {
        let from = frontier.slot;
        if from == to {
            return self.restore(backend, to, frontier);
        }
        self.check_frontier(frontier)?;
        let origin = Origin {
            slot: from,
            n_cuts: self.timelines[from].n_cuts,
        };
        self.clear(to);
        let place = |slot, row| Place { slot, row };
        let at = Timeline {
            len: frontier.len,
            ..Timeline::default()
        };
        // With nothing in its rings, only append-only rows are used.
        for (layer, kind, n_rows) in self.used_rows(&at) {
            let buffer = self.buffer_mut(layer, kind);
            backend.copy_rows(buffer, place(from, 0), place(to, 0), n_rows);
        }
        self.write_rings(backend, to, frontier)?;
        let target = &mut self.timelines[to];
        target.len = frontier.len;
        target.base = frontier.len;
        target.high = frontier.len;
        target.origin = Some(origin);
        Ok(())
    }

    /// A frontier of the slot that `to` was copied from, as one of `to`. It must
    /// lie within what was copied, and nothing may have been cut off `to` since.
    pub fn carry(&self, frontier: &Frontier, to: usize) -> Result<Frontier, RewindError> {
        self.check_frontier(frontier)?;
        let target = &self.timelines[to];
        let is_copied = target
            .origin
            .is_some_and(|origin| origin.slot == frontier.slot && origin.n_cuts >= frontier.n_cuts);
        if !is_copied || frontier.len > target.len {
            return Err(RewindError::Stale { len: frontier.len });
        }
        Ok(Frontier {
            slot: to,
            n_cuts: target.n_cuts,
            ..frontier.clone()
        })
    }

    /// Whether a frontier is part of its slot's timeline still.
    fn check_frontier(&self, frontier: &Frontier) -> Result<(), RewindError> {
        let timeline = &self.timelines[frontier.slot];
        let stale = frontier.len > timeline.len
            || frontier.n_cuts > timeline.n_cuts
            || timeline.shortest_since(frontier.n_cuts) < frontier.len;
        match stale {
            true => Err(RewindError::Stale { len: frontier.len }),
            false => Ok(()),
        }
    }

    /// Rows of every cache that a timeline may have filled.
    fn used_rows(&self, timeline: &Timeline) -> Vec<(usize, RowKind, usize)> {
        let mut used = Vec::new();
        for (layer, &kind) in self.geometry.layers.iter().enumerate() {
            for row in row_kinds(kind) {
                let n_rows = match self.ring_rows(kind, *row) {
                    Some(n_ring) => n_ring.min(timeline.high),
                    None => Geometry::n_compressed(kind, timeline.len),
                };
                if n_rows > 0 {
                    used.push((layer, *row, n_rows));
                }
            }
        }
        used
    }

    /// Rows of a ring; `None` when the rows are append-only.
    fn ring_rows(&self, kind: LayerKind, row: RowKind) -> Option<usize> {
        match row {
            RowKind::Window => Some(self.geometry.window + self.shape.rewind_rows),
            RowKind::Frontier | RowKind::IndexFrontier => {
                Some(kind.n_pooled() + self.shape.rewind_rows)
            }
            RowKind::Compressed | RowKind::Index => None,
        }
    }

    /// The rows of one kind that a slot of `len` tokens needs to go on.
    fn needed(&self, kind: LayerKind, row: RowKind, len: usize) -> std::ops::Range<usize> {
        match row {
            RowKind::Window => len.saturating_sub(self.geometry.window)..len,
            RowKind::Frontier | RowKind::IndexFrontier => frontier_start(kind, len)..len,
            RowKind::Compressed | RowKind::Index => 0..Geometry::n_compressed(kind, len),
        }
    }

    fn element_and_width(&self, kind: LayerKind, row: RowKind) -> (ElementType, usize) {
        let g = &self.geometry;
        let cache = self.shape.rounding.element();
        match row {
            RowKind::Window | RowKind::Compressed => (cache, g.head_dim),
            RowKind::Index => (cache, g.index_dim),
            RowKind::Frontier => (ElementType::F32, 2 * kind.compressor_dim(g.head_dim)),
            RowKind::IndexFrontier => (ElementType::F32, 2 * kind.compressor_dim(g.index_dim)),
        }
    }

    fn buffer(&self, layer: usize, row: RowKind) -> &B::Buffer {
        let cache = &self.caches[layer];
        let compressed = || cache.compressed.as_ref().expect("a compressed layer");
        let index = || compressed().index.as_ref().expect("a ratio-4 layer");
        match row {
            RowKind::Window => &cache.window,
            RowKind::Compressed => &compressed().rows,
            RowKind::Frontier => &compressed().frontier,
            RowKind::Index => &index().rows,
            RowKind::IndexFrontier => &index().frontier,
        }
    }

    fn buffer_mut(&mut self, layer: usize, row: RowKind) -> &mut B::Buffer {
        let cache = &mut self.caches[layer];
        if row == RowKind::Window {
            return &mut cache.window;
        }
        let compressed = cache.compressed.as_mut().expect("a compressed layer");
        match row {
            RowKind::Window | RowKind::Compressed => &mut compressed.rows,
            RowKind::Frontier => &mut compressed.frontier,
            RowKind::Index => &mut compressed.index.as_mut().expect("a ratio-4 layer").rows,
            RowKind::IndexFrontier => {
                &mut compressed.index.as_mut().expect("a ratio-4 layer").frontier
            }
        }
    }

    /// Reads rows of a slot in logical order. `range` counts positions for rings
    /// and rows otherwise; it must be inside what the slot holds.
    pub fn read_rows(
        &self,
        backend: &mut B,
        slot: usize,
        layer: usize,
        row: RowKind,
        range: std::ops::Range<usize>,
    ) -> Result<StoredRows, BackendError> {
        let kind = self.geometry.layers[layer];
        let (element, width) = self.element_and_width(kind, row);
        let row_bytes = width * element.n_bytes();
        let mut bytes = vec![0; range.len() * row_bytes];
        let mut rest = &mut bytes[..];
        for (start, n) in contiguous(range.clone(), self.ring_rows(kind, row)) {
            let (part, tail) = rest.split_at_mut(n * row_bytes);
            backend.read(self.buffer(layer, row), Place { slot, row: start }, part)?;
            rest = tail;
        }
        Ok(StoredRows {
            element,
            width,
            first: range.start,
            bytes,
        })
    }

    fn write_stored(
        &mut self,
        backend: &mut B,
        slot: usize,
        layer: usize,
        row: RowKind,
        stored: &StoredRows,
    ) -> Result<(), BackendError> {
        let kind = self.geometry.layers[layer];
        let row_bytes = stored.width * stored.element.n_bytes();
        let range = stored.first..stored.first + stored.n_rows();
        let mut rest = &stored.bytes[..];
        for (start, n) in contiguous(range, self.ring_rows(kind, row)) {
            let (part, tail) = rest.split_at(n * row_bytes);
            backend.write(
                self.buffer_mut(layer, row),
                Place { slot, row: start },
                part,
            )?;
            rest = tail;
        }
        Ok(())
    }

    /// Takes the part of a slot that is not append-only, to come back to with
    /// [`Session::restore`].
    pub fn frontier(&self, backend: &mut B, slot: usize) -> Result<Frontier, BackendError> {
        self.read_frontier(backend, slot, self.len(slot))
    }

    /// The frontier of a slot at `len` of its tokens, which the rings must reach:
    /// from [`Session::rewind_floor`] on.
    pub fn frontier_at(
        &self,
        backend: &mut B,
        slot: usize,
        len: usize,
    ) -> Result<Frontier, RestoreError> {
        let (found, floor) = (self.len(slot), self.rewind_floor(slot));
        if len > found {
            return Err(RewindError::Ahead {
                target: len,
                len: found,
            }
            .into());
        }
        if len < floor {
            return Err(RewindError::Gone { target: len, floor }.into());
        }
        Ok(self.read_frontier(backend, slot, len)?)
    }

    fn read_frontier(
        &self,
        backend: &mut B,
        slot: usize,
        len: usize,
    ) -> Result<Frontier, BackendError> {
        Ok(Frontier {
            len,
            layers: self.read_layers(backend, slot, len, true)?.into(),
            slot,
            n_cuts: self.timelines[slot].n_cuts,
        })
    }

    /// Returns a slot to where a frontier was taken. The tokens before it must
    /// be the same ones still: a slot cut back below it and grown again
    /// refuses.
    pub fn restore(
        &mut self,
        backend: &mut B,
        slot: usize,
        frontier: &Frontier,
    ) -> Result<(), RestoreError> {
        if frontier.slot != slot {
            return Err(RewindError::Stale { len: frontier.len }.into());
        }
        self.check_frontier(frontier)?;
        self.write_rings(backend, slot, frontier)?;
        let timeline = &mut self.timelines[slot];
        timeline.cut(frontier.len);
        timeline.base = frontier.len;
        timeline.high = frontier.len;
        Ok(())
    }

    fn write_rings(
        &mut self,
        backend: &mut B,
        slot: usize,
        frontier: &Frontier,
    ) -> Result<(), BackendError> {
        for (layer, rows) in frontier.layers.iter().enumerate() {
            for (row, stored) in rows {
                self.write_stored(backend, slot, layer, *row, stored)?;
            }
        }
        Ok(())
    }

    /// All of a slot, independent of the device.
    pub fn export(&self, backend: &mut B, slot: usize) -> Result<SlotState, BackendError> {
        let len = self.len(slot);
        Ok(SlotState {
            len,
            rings: self.read_layers(backend, slot, len, true)?,
            rows: self.read_layers(backend, slot, len, false)?,
        })
    }

    fn read_layers(
        &self,
        backend: &mut B,
        slot: usize,
        len: usize,
        rings: bool,
    ) -> Result<Vec<Vec<(RowKind, StoredRows)>>, BackendError> {
        let mut layers = Vec::with_capacity(self.geometry.layers.len());
        for (layer, &kind) in self.geometry.layers.iter().enumerate() {
            let mut rows = Vec::new();
            for &row in row_kinds(kind) {
                if self.ring_rows(kind, row).is_some() == rings {
                    let range = self.needed(kind, row, len);
                    rows.push((row, self.read_rows(backend, slot, layer, row, range)?));
                }
            }
            layers.push(rows);
        }
        Ok(layers)
    }

    /// Fills a slot with a state from this or another backend; what it held is
    /// gone.
    pub fn import(
        &mut self,
        backend: &mut B,
        slot: usize,
        state: &SlotState,
    ) -> Result<(), ImportError> {
        self.clear(slot);
        let len = state.len;
        if len > self.shape.capacity {
            return Err(mismatch(
                "the number of tokens",
                len,
                format!("at most {}", self.shape.capacity),
            ));
        }
        self.check_layers(&state.rings, len, true)?;
        self.check_layers(&state.rows, len, false)?;
        for layers in [&state.rings, &state.rows] {
            for (layer, rows) in layers.iter().enumerate() {
                for (row, stored) in rows {
                    self.write_stored(backend, slot, layer, *row, stored)?;
                }
            }
        }
        let timeline = &mut self.timelines[slot];
        timeline.len = len;
        timeline.base = len;
        timeline.high = len;
        Ok(())
    }

    fn check_layers(
        &self,
        layers: &[Vec<(RowKind, StoredRows)>],
        len: usize,
        rings: bool,
    ) -> Result<(), ImportError> {
        let n_layers = self.geometry.layers.len();
        if layers.len() != n_layers {
            return Err(mismatch("the number of layers", layers.len(), n_layers));
        }
        for (layer, (rows, &kind)) in layers.iter().zip(&self.geometry.layers).enumerate() {
            let expected: Vec<RowKind> = row_kinds(kind)
                .iter()
                .copied()
                .filter(|row| self.ring_rows(kind, *row).is_some() == rings)
                .collect();
            let found: Vec<RowKind> = rows.iter().map(|(row, _)| *row).collect();
            if found != expected {
                let what = format!("what layer {layer} holds");
                return Err(mismatch(
                    what,
                    format!("{found:?}"),
                    format!("{expected:?}"),
                ));
            }
            for (row, stored) in rows {
                let (element, width) = self.element_and_width(kind, *row);
                let range = self.needed(kind, *row, len);
                let n_bytes = range.len() * width * element.n_bytes();
                let found = (
                    stored.element,
                    stored.width,
                    stored.first,
                    stored.bytes.len(),
                );
                let expected = (element, width, range.start, n_bytes);
                if found != expected {
                    let what =
                        format!("(element, width, first row, bytes) of {row:?} in layer {layer}");
                    return Err(mismatch(
                        what,
                        format!("{found:?}"),
                        format!("{expected:?}"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Why a frontier could not be taken, restored or copied.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is not part of the timeline; nothing was changed.
    #[error(transparent)]
    Rewind(#[from] RewindError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn mismatch(what: impl Into<String>, found: impl ToString, expected: impl ToString) -> ImportError {
    ImportError::Mismatch {
        what: what.into(),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// The caches that a layer of a kind has.
fn row_kinds(kind: LayerKind) -> &'static [RowKind] {
    use RowKind::*;
    match kind {
        LayerKind::Sliding => &[Window],
        LayerKind::Hca => &[Window, Compressed, Frontier],
        LayerKind::Csa => &[Window, Compressed, Frontier, Index, IndexFrontier],
    }
}

/// First token whose projections a slot of `len` tokens still needs: the start
/// of the unfinished group, and for ratio 4 of the group before it.
fn frontier_start(kind: LayerKind, len: usize) -> usize {
    let ratio = kind.ratio().expect("a compressed layer");
    let group = len / ratio * ratio;
    match kind {
        LayerKind::Csa => group.saturating_sub(ratio),
        _ => group,
    }
}

/// Cuts a range of positions into contiguous (first row, count) pieces of a
/// ring; of append-only rows it is one piece.
fn contiguous(
    range: std::ops::Range<usize>,
    ring_rows: Option<usize>,
) -> impl Iterator<Item = (usize, usize)> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        if next >= range.end {
            return None;
        }
        let (start, limit) = match ring_rows {
            None => (next, usize::MAX),
            Some(n) => (next % n, n - next % n),
        };
        let n = limit.min(range.end - next);
        next += n;
        Some((start, n))
    })
}
