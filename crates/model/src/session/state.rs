//! Taking a slot's state out of a session and putting it back: rows in logical
//! order, frontiers, whole slots.

use std::ops::Range;
use std::sync::Arc;

use super::contents::RowKind;
use super::errors::{ImportError, RestoreError, RewindError};
use super::{LayerCache, Session};
use crate::backend::Backend;
use crate::operands::{BackendError, ElementType, Place, ReadPart, WritePart};

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

/// The rings of a slot at one length: enough for [`Session::restore`] to return
/// there while the compressed rows below it are still those of that time. Copies
/// share the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    /// Tokens in the slot at that place.
    pub len: usize,
    pub(super) layers: Arc<[Vec<(RowKind, StoredRows)>]>,
    pub(super) slot: usize,
    pub(super) n_cuts: u64,
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

/// Rows by layer, in the order of [`RowKind::of`].
type ByLayer = Vec<Vec<(RowKind, StoredRows)>>;

impl<B: Backend> Session<B> {
    /// Reads rows of a slot in logical order. `range` counts positions for rings
    /// and rows otherwise; it must be inside what the slot holds.
    pub fn read_rows(
        &self,
        backend: &mut B,
        slot: usize,
        layer: usize,
        row: RowKind,
        range: Range<usize>,
    ) -> Result<StoredRows, BackendError> {
        let mut rows = self.read_groups(backend, slot, &[(layer, row, range)])?;
        Ok(rows.pop().expect("one group"))
    }

    /// Reads rows of several layers and kinds with one wait; see
    /// [`Session::read_rows`].
    pub fn read_groups(
        &self,
        backend: &mut B,
        slot: usize,
        groups: &[(usize, RowKind, Range<usize>)],
    ) -> Result<Vec<StoredRows>, BackendError> {
        let mut rows: Vec<StoredRows> = groups
            .iter()
            .map(|(layer, row, range)| {
                let kind = self.geometry.layers[*layer];
                let (element, width) = self.contents.element_and_width(kind, *row);
                StoredRows {
                    element,
                    width,
                    first: range.start,
                    bytes: vec![0; range.len() * width * element.n_bytes()],
                }
            })
            .collect();
        let mut parts = Vec::with_capacity(2 * rows.len());
        for ((layer, row, range), stored) in groups.iter().zip(&mut rows) {
            let buffer = buffer_of(&self.caches[*layer], *row);
            let row_bytes = stored.width * stored.element.n_bytes();
            let mut rest = &mut stored.bytes[..];
            for (at, n) in self.places(slot, *layer, *row, range.clone()) {
                let (bytes, tail) = rest.split_at_mut(n * row_bytes);
                parts.push(ReadPart { buffer, at, bytes });
                rest = tail;
            }
        }
        backend.read_many(&mut parts)?;
        Ok(rows)
    }

    /// Writes rows by layer with one wait.
    fn write_layers(
        &mut self,
        backend: &mut B,
        slot: usize,
        layers: &[&[Vec<(RowKind, StoredRows)>]],
    ) -> Result<(), BackendError> {
        let places = |layer: usize, (row, stored): &(RowKind, StoredRows)| {
            let range = stored.first..stored.first + stored.n_rows();
            self.places(slot, layer, *row, range).collect::<Vec<_>>()
        };
        let mut pieces = Vec::new();
        for by_layer in layers {
            for (layer, rows) in by_layer.iter().enumerate() {
                for group in rows {
                    let (row, stored) = group;
                    let row_bytes = stored.width * stored.element.n_bytes();
                    let mut at_byte = 0;
                    for (at, n) in places(layer, group) {
                        let bytes = &stored.bytes[at_byte..][..n * row_bytes];
                        at_byte += bytes.len();
                        pieces.push((layer, *row, at, bytes));
                    }
                }
            }
        }
        let mut parts = Vec::new();
        for (layer, cache) in self.caches.iter_mut().enumerate() {
            for (kind, buffer) in buffers_mut(cache) {
                let of_buffer = pieces
                    .iter()
                    .filter(|(l, row, ..)| (*l, *row) == (layer, kind));
                let pieces: Vec<(Place, &[u8])> =
                    of_buffer.map(|(.., at, bytes)| (*at, *bytes)).collect();
                if !pieces.is_empty() {
                    parts.push(WritePart { buffer, pieces });
                }
            }
        }
        backend.write_many(&mut parts)
    }

    /// Where rows lie in their buffer: contiguous (first place, count) pieces.
    pub(super) fn places(
        &self,
        slot: usize,
        layer: usize,
        row: RowKind,
        range: Range<usize>,
    ) -> impl Iterator<Item = (Place, usize)> + use<B> {
        let kind = self.geometry.layers[layer];
        let n_ring = self.ring_rows(kind, row);
        let place = match n_ring {
            Some(_) => Place { slot, row: 0 },
            None => Place {
                slot: 0,
                row: self.bases[slot] / kind.ratio().expect("a compressed layer"),
            },
        };
        contiguous(range, n_ring).map(move |(row, n)| {
            let row = place.row + row;
            (Place { row, ..place }, n)
        })
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

    pub(super) fn write_rings(
        &mut self,
        backend: &mut B,
        slot: usize,
        frontier: &Frontier,
    ) -> Result<(), BackendError> {
        self.write_layers(backend, slot, &[&frontier.layers])
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
    ) -> Result<ByLayer, BackendError> {
        let mut groups = Vec::new();
        for (layer, &kind) in self.geometry.layers.iter().enumerate() {
            for &row in RowKind::of(kind) {
                if row.is_ring() == rings {
                    groups.push((layer, row, self.contents.needed(kind, row, len)));
                }
            }
        }
        let rows = self.read_groups(backend, slot, &groups)?;
        let mut layers: ByLayer = vec![Vec::new(); self.geometry.layers.len()];
        for ((layer, row, _), stored) in groups.into_iter().zip(rows) {
            layers[layer].push((row, stored));
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
        let capacity = self.shape.capacities[slot];
        if len > capacity {
            let expected = format!("at most {capacity}");
            return Err(mismatch("the number of tokens", len, expected));
        }
        self.check_layers(&state.rings, len, true)?;
        self.check_layers(&state.rows, len, false)?;
        self.write_layers(backend, slot, &[&state.rings, &state.rows])?;
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
            let expected: Vec<RowKind> = RowKind::of(kind)
                .iter()
                .copied()
                .filter(|row| row.is_ring() == rings)
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
                let (element, width) = self.contents.element_and_width(kind, *row);
                let range = self.contents.needed(kind, *row, len);
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

/// The cache of a layer that holds rows of a kind.
pub(super) fn buffer_of<Buffer>(cache: &LayerCache<Buffer>, kind: RowKind) -> &Buffer {
    let compressed = || cache.compressed.as_ref().expect("a compressed layer");
    let index = || compressed().index.as_ref().expect("a ratio-4 layer");
    match kind {
        RowKind::Window => &cache.window,
        RowKind::Compressed => &compressed().rows,
        RowKind::Frontier => &compressed().frontier,
        RowKind::Index => &index().rows,
        RowKind::IndexFrontier => &index().frontier,
    }
}

/// The caches of a layer, by the kind of their rows.
pub(super) fn buffers_mut<Buffer>(
    cache: &mut LayerCache<Buffer>,
) -> impl Iterator<Item = (RowKind, &mut Buffer)> {
    let mut buffers = vec![(RowKind::Window, &mut cache.window)];
    if let Some(compressed) = &mut cache.compressed {
        buffers.push((RowKind::Compressed, &mut compressed.rows));
        buffers.push((RowKind::Frontier, &mut compressed.frontier));
        if let Some(index) = &mut compressed.index {
            buffers.push((RowKind::Index, &mut index.rows));
            buffers.push((RowKind::IndexFrontier, &mut index.frontier));
        }
    }
    buffers.into_iter()
}

fn mismatch(what: impl Into<String>, found: impl ToString, expected: impl ToString) -> ImportError {
    ImportError::Mismatch {
        what: what.into(),
        found: found.to_string(),
        expected: expected.to_string(),
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
