//! What a session consists of: its sizes, and the buffers that follow from them.

use crate::backend::Backend;
use crate::geometry::{CSA_RATIO, Geometry, LayerKind};
use crate::operands::{Choice, ElementType, Limits, N_CANDIDATES, Routes, Shape};
use crate::rows::{BASE_ALIGN, RowsImage};

/// Default of [`SessionShape::rewind_rows`].
pub const REWIND_ROWS: usize = 64;
/// Smallest class of [`StepShape::max_len`].
const MIN_LEN_CLASS: usize = 1024;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionShape {
    /// Tokens that each slot can hold.
    pub capacities: Vec<usize>,
    /// Rows of the largest step.
    pub max_rows: usize,
    /// Rows of the largest step that need logits.
    pub max_outputs: usize,
    /// Tokens by which a slot can be cut back without a stored frontier.
    pub rewind_rows: usize,
    /// Rounding of cache rows.
    pub rounding: CacheRounding,
    /// Layers after which the mean over the streams is kept for a drafter, in
    /// ascending order.
    pub taps: Vec<usize>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Rows, padding included.
    pub n_rows: usize,
    /// Rows that go through the head, padding included.
    pub n_outputs: usize,
    /// Whether any row sees more compressed rows than the indexer selects.
    pub selects: bool,
    /// Tokens that no slot of the step holds more of afterwards: a power of two, or
    /// all that the longest slot can hold, in whole groups.
    pub max_len: usize,
    /// Rows scored at a time.
    pub score_rows: usize,
    /// Whether cache rows are rounded.
    pub rounded: bool,
    /// Whether candidates are chosen from the logits.
    pub chooses: bool,
}

impl StepShape {
    /// Scores of a row: index rows of [`StepShape::max_len`] tokens.
    pub fn score_stride(&self) -> usize {
        self.max_len / CSA_RATIO
    }
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
    /// `[1, n_tokens / ratio, head_dim]`.
    pub rows: Buffer,
    /// f32 `[n_slots, n_pooled + rewind_rows, 2 * compressor_dim]`.
    pub frontier: Buffer,
    /// Of ratio-4 layers.
    pub index: Option<IndexCache<Buffer>>,
}

/// Index rows and their unfinished group.
#[derive(Debug)]
pub struct IndexCache<Buffer> {
    /// `[1, n_tokens / 4, index_dim]`.
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
    /// Room for the scores of as many rows as [`SessionShape::step`] says.
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
    /// `[max_outputs, ...]`.
    pub choice: Choice<Buffer>,
    /// `[max_rows, n_taps * n_embd]`, when the session has taps.
    pub taps: Option<Buffer>,
}

type Alloc<'a, Buffer, E> = &'a mut dyn FnMut(ElementType, Shape) -> Result<Buffer, E>;

impl SessionShape {
    /// `n_slots` slots of `capacity` tokens each, every row of a step with logits if
    /// need be, nothing tapped.
    pub fn uniform(n_slots: usize, capacity: usize, max_rows: usize) -> SessionShape {
        SessionShape {
            capacities: vec![capacity; n_slots],
            max_rows,
            max_outputs: max_rows,
            rewind_rows: REWIND_ROWS,
            rounding: CacheRounding::default(),
            taps: Vec::new(),
        }
    }

    /// Slots.
    pub fn n_slots(&self) -> usize {
        self.capacities.len()
    }

    /// Tokens that the longest slot can hold.
    pub fn longest(&self) -> usize {
        self.capacities.iter().copied().max().unwrap_or(0)
    }

    /// Where each slot's range begins in the token space of all slots, and at the end
    /// how many tokens that has.
    pub fn bases(&self) -> Vec<usize> {
        let mut at = 0;
        let mut bases = vec![0];
        for capacity in &self.capacities {
            at += capacity.next_multiple_of(BASE_ALIGN);
            bases.push(at);
        }
        bases
    }

    /// Bytes a session of this shape takes, computed by the walk that
    /// allocates it.
    pub fn plan(&self, geometry: &Geometry, limits: &Limits) -> MemoryPlan {
        let n_bytes = std::cell::Cell::new(0);
        let mut measure = |element: ElementType, shape: Shape| {
            n_bytes.set(n_bytes.get() + element.n_bytes() * shape.len());
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(_) = self.caches(geometry, &mut measure);
        let slots_bytes = n_bytes.take();
        let Ok(_) = self.scratch(geometry, limits, &mut measure);
        let scratch_bytes = n_bytes.take();
        MemoryPlan {
            slots_bytes,
            scratch_bytes: scratch_bytes
                + RowsImage::n_bytes(geometry, self.max_rows)
                + RowsImage::n_bytes(geometry, self.max_outputs),
        }
    }

    /// The shape of a step whose longest slot holds `longest` tokens afterwards.
    pub fn step<B: Backend>(
        &self,
        backend: &B,
        n_rows: usize,
        n_outputs: usize,
        longest: usize,
        chooses: bool,
    ) -> StepShape {
        let g = backend.geometry();
        let class = |n: usize, limit: usize| match n {
            0 => 0,
            n => backend.row_class(n).min(limit).max(n),
        };
        let all = self.longest().next_multiple_of(BASE_ALIGN);
        let max_len = longest.next_power_of_two().max(MIN_LEN_CLASS).min(all);
        let score_bytes = backend.limits().score_bytes;
        let has_indexer = g.layers.contains(&LayerKind::Csa);
        StepShape {
            n_rows: class(n_rows, self.max_rows),
            n_outputs: class(n_outputs, self.max_outputs),
            selects: has_indexer && longest / CSA_RATIO > g.index_top_k,
            max_len,
            score_rows: (score_bytes / (max_len / CSA_RATIO * 4).max(1)).clamp(1, self.max_rows),
            rounded: self.rounding == CacheRounding::Official,
            chooses,
        }
    }

    /// Scores that the largest tile takes.
    fn n_scores(&self, limits: &Limits) -> usize {
        let row = self.longest().next_multiple_of(BASE_ALIGN) / CSA_RATIO;
        (limits.score_bytes / 4).min(self.max_rows * row).max(row)
    }

    pub(super) fn caches<Buffer, E>(
        &self,
        g: &Geometry,
        alloc: Alloc<'_, Buffer, E>,
    ) -> Result<Vec<LayerCache<Buffer>>, E> {
        let row = self.rounding.element();
        let n_tokens = *self.bases().last().expect("the end");
        let ring = |n_rows, width| Shape {
            n_slots: self.n_slots(),
            n_rows,
            width,
        };
        let frontier = |kind: LayerKind, row_dim| {
            ring(
                kind.n_pooled() + self.rewind_rows,
                2 * kind.compressor_dim(row_dim),
            )
        };
        g.layers
            .iter()
            .map(|&kind| {
                let n_rows = Geometry::n_compressed(kind, n_tokens);
                Ok(LayerCache {
                    window: alloc(row, ring(g.window + self.rewind_rows, g.head_dim))?,
                    compressed: match kind {
                        LayerKind::Sliding => None,
                        _ => Some(CompressedCache {
                            rows: alloc(row, Shape::rows(n_rows, g.head_dim))?,
                            frontier: alloc(ElementType::F32, frontier(kind, g.head_dim))?,
                            index: match kind {
                                LayerKind::Csa => Some(IndexCache {
                                    rows: alloc(row, Shape::rows(n_rows, g.index_dim))?,
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

    pub(super) fn scratch<Buffer, E>(
        &self,
        g: &Geometry,
        limits: &Limits,
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
                scores: rows(1, self.n_scores(limits))?,
                selected: alloc(ElementType::U32, Shape::rows(n, g.index_top_k))?,
            }),
        };
        let routes = Routes {
            experts: alloc(ElementType::U32, Shape::rows(n, g.n_experts_used))?,
            weights: alloc(ElementType::F32, Shape::rows(n, g.n_experts_used))?,
        };
        let n_candidates = N_CANDIDATES.min(g.n_vocab);
        let ids = alloc(
            ElementType::U32,
            Shape::rows(self.max_outputs, n_candidates),
        )?;
        let mut rows = |n_rows, width| alloc(ElementType::F32, Shape::rows(n_rows, width));
        let taps = match self.taps.len() {
            0 => None,
            n_taps => Some(rows(n, n_taps * g.n_embd)?),
        };
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
            choice: Choice {
                ids,
                values: rows(self.max_outputs, n_candidates)?,
                lse: rows(self.max_outputs, 2)?,
            },
            taps,
        })
    }
}
