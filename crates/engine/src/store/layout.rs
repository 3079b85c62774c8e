//! Which rows of a slot go into which file.

use std::ops::Range;

use ds4_model::{CacheRounding, Geometry, LayerKind, RowKind, SlotContents};

use super::rows::{RowFormat, RowGrid};

/// Tokens of a block when nothing else is asked for.
pub const BLOCK_TOKENS: usize = 2048;

/// The rows of a slot, by layer: what a state of so many tokens consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotLayout {
    contents: SlotContents,
    rope_dim: usize,
    n_vocab: usize,
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
            contents: SlotContents::new(geometry, rounding),
            rope_dim: geometry.rope_dim,
            n_vocab: geometry.n_vocab,
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
        self.contents.rounding
    }

    /// Vocabulary entries.
    pub(crate) fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.contents.layers.len()
    }

    /// Tokens of block `index`.
    pub(crate) fn block_range(&self, index: usize) -> Range<usize> {
        index * self.block_tokens..(index + 1) * self.block_tokens
    }

    /// Rows of one layer in memory, as `Session` keeps them.
    fn format(&self, layer: LayerKind, kind: RowKind) -> RowFormat {
        let (element, width) = self.contents.element_and_width(layer, kind);
        let rope_dim = self.rope_dim;
        let grid = match (self.contents.rounding, kind) {
            (CacheRounding::Off, _) => RowGrid::None,
            (_, RowKind::Window | RowKind::Compressed) => RowGrid::Attention { rope_dim },
            (_, RowKind::Index) => RowGrid::Index,
            (_, RowKind::Frontier | RowKind::IndexFrontier) => RowGrid::None,
        };
        RowFormat {
            element,
            width,
            grid,
        }
    }

    /// Rows of every layer: those in rings, or the appended ones.
    fn groups(
        &self,
        rings: bool,
        range: impl Fn(LayerKind, RowKind) -> Range<usize>,
    ) -> Vec<Group> {
        let layers = self.contents.layers.iter().enumerate();
        layers
            .flat_map(|(layer, &of)| {
                let kinds = RowKind::of(of).iter().map(move |kind| (layer, of, *kind));
                kinds.filter(|(.., kind)| kind.is_ring() == rings)
            })
            .map(|(layer, of, kind)| Group {
                layer,
                kind,
                format: self.format(of, kind),
                range: range(of, kind),
            })
            .collect()
    }

    /// The append-only rows that the tokens of a span complete, in file order.
    pub(crate) fn completed(&self, tokens: Range<usize>) -> Vec<Group> {
        self.groups(false, |layer, _| {
            let n = |len| Geometry::n_compressed(layer, len);
            n(tokens.start)..n(tokens.end)
        })
    }

    /// What the tokens after `len` look back to besides compressed rows, in
    /// file order: the window, and the projections of unfinished groups. Rows
    /// of ratio 4 overlap, so theirs start a group earlier.
    pub(crate) fn frontier(&self, len: usize) -> Vec<Group> {
        self.groups(true, |layer, kind| self.contents.needed(layer, kind, len))
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
