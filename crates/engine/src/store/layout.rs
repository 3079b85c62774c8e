//! Which rows of a slot go into which file.

use std::ops::Range;

use ds4_model::geometry::CSA_RATIO;
use ds4_model::{CacheRounding, ElementType, Geometry, LayerKind, RowKind};

use super::rows::{RowFormat, RowGrid};

/// Tokens of a block when nothing else is asked for.
pub const BLOCK_TOKENS: usize = 2048;

/// The rows of a slot, by layer: what a state of so many tokens consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotLayout {
    layers: Vec<LayerKind>,
    window: usize,
    head_dim: usize,
    rope_dim: usize,
    index_dim: usize,
    n_vocab: usize,
    rounding: CacheRounding,
    block_tokens: usize,
}

/// Rows of one kind of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) layer: usize,
    pub(crate) kind: RowKind,
    pub(crate) format: RowFormat,
    /// Positions of a ring, indices of compressed rows.
    pub(crate) range: Range<usize>,
}

impl Group {
    /// Bytes of the rows in memory.
    pub(crate) fn n_bytes(&self) -> usize {
        self.range.len() * self.format.row_bytes()
    }
}

impl SlotLayout {
    /// The layout of a model's slots, in blocks of [`BLOCK_TOKENS`].
    pub fn new(geometry: &Geometry, rounding: CacheRounding) -> SlotLayout {
        SlotLayout {
            layers: geometry.layers.clone(),
            window: geometry.window,
            head_dim: geometry.head_dim,
            rope_dim: geometry.rope_dim,
            index_dim: geometry.index_dim,
            n_vocab: geometry.n_vocab,
            rounding,
            block_tokens: BLOCK_TOKENS,
        }
    }

    /// The same in blocks of `n` tokens, at least 1. Blocks of different sizes
    /// do not mix: the size is part of the compatibility key.
    pub fn with_block_tokens(mut self, n: usize) -> SlotLayout {
        self.block_tokens = n.max(1);
        self
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Rounding of cache rows.
    pub fn rounding(&self) -> CacheRounding {
        self.rounding
    }

    /// Vocabulary entries.
    pub(crate) fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Tokens of block `index`.
    pub(crate) fn block_range(&self, index: usize) -> Range<usize> {
        index * self.block_tokens..(index + 1) * self.block_tokens
    }

    /// Rows of one layer in memory, as `Session` keeps them.
    fn format(&self, layer: LayerKind, kind: RowKind) -> RowFormat {
        let cache = |width, grid| RowFormat {
            element: self.rounding.element(),
            width,
            grid: match self.rounding {
                CacheRounding::Official => grid,
                CacheRounding::Off => RowGrid::None,
            },
        };
        let projections = |row_dim| RowFormat {
            element: ElementType::F32,
            width: 2 * layer.compressor_dim(row_dim),
            grid: RowGrid::None,
        };
        let rope_dim = self.rope_dim;
        match kind {
            RowKind::Window | RowKind::Compressed => {
                cache(self.head_dim, RowGrid::Attention { rope_dim })
            }
            RowKind::Index => cache(self.index_dim, RowGrid::Index),
            RowKind::Frontier => projections(self.head_dim),
            RowKind::IndexFrontier => projections(self.index_dim),
        }
    }

    fn groups(&self, wanted: impl Fn(LayerKind) -> Vec<(RowKind, Range<usize>)>) -> Vec<Group> {
        let mut groups = Vec::new();
        for (layer, &kind) in self.layers.iter().enumerate() {
            groups.extend(wanted(kind).into_iter().map(|(row, range)| Group {
                layer,
                kind: row,
                format: self.format(kind, row),
                range,
            }));
        }
        groups
    }

    /// The append-only rows that the tokens of a span complete, in file order.
    pub(crate) fn completed(&self, tokens: Range<usize>) -> Vec<Group> {
        self.groups(|layer| {
            let n = |len| Geometry::n_compressed(layer, len);
            let range = n(tokens.start)..n(tokens.end);
            match layer {
                LayerKind::Sliding => vec![],
                LayerKind::Hca => vec![(RowKind::Compressed, range)],
                LayerKind::Csa => vec![
                    (RowKind::Compressed, range.clone()),
                    (RowKind::Index, range),
                ],
            }
        })
    }

    /// What the tokens after `len` look back to besides compressed rows, in
    /// file order: the window, and the projections of unfinished groups. Rows
    /// of ratio 4 overlap, so theirs start a group earlier.
    pub(crate) fn frontier(&self, len: usize) -> Vec<Group> {
        let window = len.saturating_sub(self.window)..len;
        self.groups(|layer| {
            let mut rows = vec![(RowKind::Window, window.clone())];
            if let Some(ratio) = layer.ratio() {
                let group = len / ratio * ratio;
                match layer {
                    LayerKind::Csa => {
                        let start = group.saturating_sub(CSA_RATIO);
                        rows.push((RowKind::Frontier, start..len));
                        rows.push((RowKind::IndexFrontier, start..len));
                    }
                    _ => rows.push((RowKind::Frontier, group..len)),
                }
            }
            rows
        })
    }

    /// Bytes of the frontier of a state of `len` tokens in memory.
    pub(crate) fn frontier_bytes(&self, len: usize) -> usize {
        self.frontier(len).iter().map(Group::n_bytes).sum()
    }

    /// Bytes that the rows of a block take in memory.
    pub fn block_bytes(&self) -> usize {
        self.completed(self.block_range(0))
            .iter()
            .map(Group::n_bytes)
            .sum()
    }

    /// Bytes that the tail and the frontier of a point at `len` take in memory.
    pub fn point_bytes(&self, len: usize) -> usize {
        let tail = len / self.block_tokens * self.block_tokens..len;
        let groups = [self.frontier(len), self.completed(tail)];
        groups.iter().flatten().map(Group::n_bytes).sum()
    }
}

/// Number of a row kind in a file.
pub(crate) fn kind_code(kind: RowKind) -> u8 {
    match kind {
        RowKind::Window => 0,
        RowKind::Compressed => 1,
        RowKind::Frontier => 2,
        RowKind::Index => 3,
        RowKind::IndexFrontier => 4,
    }
}
