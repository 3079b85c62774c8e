//! What a slot of so many tokens consists of: which rows of which layer, of what
//! element and width. The session and the store on disk both ask here.

use std::ops::Range;

use super::shape::CacheRounding;
use crate::geometry::{Geometry, LayerKind};
use crate::operands::ElementType;

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

impl RowKind {
    /// The kinds that a layer keeps, in the order of states and files.
    pub fn of(layer: LayerKind) -> &'static [RowKind] {
        use RowKind::*;
        match layer {
            LayerKind::Sliding => &[Window],
            LayerKind::Hca => &[Window, Compressed, Frontier],
            LayerKind::Csa => &[Window, Compressed, Frontier, Index, IndexFrontier],
        }
    }

    /// Whether the rows lie in a ring by position; the others are appended.
    pub fn is_ring(self) -> bool {
        !matches!(self, RowKind::Compressed | RowKind::Index)
    }
}

/// The rows of a slot, by kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotContents {
    /// Kinds of the layers.
    pub layers: Vec<LayerKind>,
    /// Rounding of cache rows.
    pub rounding: CacheRounding,
    window: usize,
    head_dim: usize,
    index_dim: usize,
}

impl SlotContents {
    /// Those of a model's slots.
    pub fn new(geometry: &Geometry, rounding: CacheRounding) -> SlotContents {
        SlotContents {
            layers: geometry.layers.clone(),
            rounding,
            window: geometry.window,
            head_dim: geometry.head_dim,
            index_dim: geometry.index_dim,
        }
    }

    /// Element and width of rows.
    pub fn element_and_width(&self, layer: LayerKind, kind: RowKind) -> (ElementType, usize) {
        let cache = self.rounding.element();
        match kind {
            RowKind::Window | RowKind::Compressed => (cache, self.head_dim),
            RowKind::Index => (cache, self.index_dim),
            RowKind::Frontier => (ElementType::F32, 2 * layer.compressor_dim(self.head_dim)),
            RowKind::IndexFrontier => (ElementType::F32, 2 * layer.compressor_dim(self.index_dim)),
        }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self, layer: LayerKind, kind: RowKind) -> usize {
        let (element, width) = self.element_and_width(layer, kind);
        width * element.n_bytes()
    }

    /// The rows that a slot of `len` tokens needs to go on: positions of a ring,
    /// numbers of appended rows.
    pub fn needed(&self, layer: LayerKind, kind: RowKind, len: usize) -> Range<usize> {
        match kind {
            RowKind::Window => len.saturating_sub(self.window)..len,
            RowKind::Frontier | RowKind::IndexFrontier => frontier_start(layer, len)..len,
            RowKind::Compressed | RowKind::Index => 0..Geometry::n_compressed(layer, len),
        }
    }
}

/// First token whose projections a slot of `len` tokens still needs: the start
/// of the unfinished group, and for ratio 4, whose rows overlap, of the group before it.
fn frontier_start(layer: LayerKind, len: usize) -> usize {
    let ratio = layer.ratio().expect("a compressed layer");
    let group = len / ratio * ratio;
    match layer {
        LayerKind::Csa => group.saturating_sub(ratio),
        _ => group,
    }
}
