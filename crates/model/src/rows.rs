//! Rows: what one step computes. A row is one token of one sequence at one
//! position; a batch is any mixture of them.

use std::ops::Range;

use crate::geometry::Geometry;
use crate::rope::{RopeFrequencies, RopeTable};

/// Slot of a row that exists only to fill a captured step up to its size.
/// Ops leave its outputs unspecified and never store anything for it.
pub const PAD_SLOT: u32 = u32::MAX;

/// Which rows of a segment need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last row only.
    Last,
    /// Every row: verification of a draft, or the logits of a whole prompt.
    All,
}

/// Consecutive tokens of one slot, to be appended at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The slot.
    pub slot: usize,
    /// The tokens, in order; at least one.
    pub tokens: Vec<u32>,
    /// Which of them need logits.
    pub outputs: Outputs,
}

/// The rows of one step: at most one segment for every slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    segments: Vec<Segment>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds consecutive tokens for a slot.
    ///
    /// # Panics
    /// If `tokens` is empty or the slot is already in the batch: both are
    /// errors of the scheduler, not of its input.
    pub fn push(&mut self, slot: usize, tokens: &[u32], outputs: Outputs) {
        assert!(!tokens.is_empty(), "a segment has at least one token");
        assert!(
            self.segments.iter().all(|s| s.slot != slot),
            "slot {slot} is already in this batch"
        );
        self.segments.push(Segment {
            slot,
            tokens: tokens.to_vec(),
            outputs,
        });
    }

    /// The segments, in row order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Rows of the batch.
    pub fn n_rows(&self) -> usize {
        self.segments.iter().map(|s| s.tokens.len()).sum()
    }

    /// Rows that need logits, in the order of the rows.
    pub fn n_outputs(&self) -> usize {
        self.segments
            .iter()
            .map(|s| match s.outputs {
                Outputs::None => 0,
                Outputs::Last => 1,
                Outputs::All => s.tokens.len(),
            })
            .sum()
    }
}

/// The per-step numbers of a set of rows, as arrays a backend uploads as they
/// are. Everything that changes from step to step is in here and nowhere else,
/// so a recorded step can be replayed after rewriting it.
#[derive(Clone, Debug, Default)]
pub struct RowsImage {
    /// Token ids, `[n_rows]`.
    pub token: Vec<u32>,
    /// Positions, `[n_rows]`.
    pub position: Vec<u32>,
    /// Slots, `[n_rows]`; [`PAD_SLOT`] for padding.
    pub slot: Vec<u32>,
    /// Index of the first row of the same slot in this batch, `[n_rows]`.
    pub first_row: Vec<u32>,
    /// One past the last row of the same slot in this batch, `[n_rows]`.
    pub end_row: Vec<u32>,
    /// For a subset of rows: the row of the full set each one is, `[n_rows]`.
    pub source: Vec<u32>,
    /// Rotary (cosine, sine) pairs, `[n_rows, RopeTable::COUNT, rope_dim / 2, 2]`.
    pub angles: Vec<f32>,
    table_len: usize,
}

impl RowsImage {
    /// An empty image with room for `capacity` rows; filling it later does not
    /// allocate.
    pub fn with_capacity(geometry: &Geometry, capacity: usize) -> RowsImage {
        let ids = || Vec::with_capacity(capacity);
        RowsImage {
            token: ids(),
            position: ids(),
            slot: ids(),
            first_row: ids(),
            end_row: ids(),
            source: ids(),
            angles: Vec::with_capacity(capacity * RopeTable::COUNT * geometry.rope_dim),
            table_len: geometry.rope_dim,
        }
    }

    /// Number of rows, padding included.
    pub fn len(&self) -> usize {
        self.slot.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.slot.is_empty()
    }

    /// Bytes of the arrays for `n_rows` rows.
    pub fn n_bytes(geometry: &Geometry, n_rows: usize) -> usize {
        n_rows * 4 * (6 + RopeTable::COUNT * geometry.rope_dim)
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.token.clear();
        self.position.clear();
        self.slot.clear();
        self.first_row.clear();
        self.end_row.clear();
        self.source.clear();
        self.angles.clear();
    }

    /// Takes the rows of another image into the memory that is there.
    pub fn copy_from(&mut self, image: &RowsImage) {
        let RowsImage {
            token,
            position,
            slot,
            first_row,
            end_row,
            source,
            angles,
            table_len,
        } = image;
        self.token.clone_from(token);
        self.position.clone_from(position);
        self.slot.clone_from(slot);
        self.first_row.clone_from(first_row);
        self.end_row.clone_from(end_row);
        self.source.clone_from(source);
        self.angles.clone_from(angles);
        self.table_len = *table_len;
    }

    /// Appends a segment of `slot` that begins at `first_position`.
    pub fn push_segment(
        &mut self,
        frequencies: &RopeFrequencies,
        slot: usize,
        first_position: usize,
        tokens: &[u32],
    ) {
        let first_row = self.len() as u32;
        let end_row = first_row + tokens.len() as u32;
        for (i, token) in tokens.iter().enumerate() {
            let position = (first_position + i) as u32;
            let row = self.len() as u32;
            self.push(*token, position, slot as u32, first_row..end_row, row);
            let at = self.angles.len() - RopeTable::COUNT * self.table_len;
            frequencies.write_angles(position, &mut self.angles[at..]);
        }
    }

    /// Appends a copy of row `row` of `full`, remembering which it was.
    pub fn push_from(&mut self, full: &RowsImage, row: usize) {
        let at = self.len() as u32;
        self.push(
            full.token[row],
            full.position[row],
            full.slot[row],
            at..at + 1,
            row as u32,
        );
        let stride = RopeTable::COUNT * self.table_len;
        let at = self.angles.len() - stride;
        self.angles[at..].copy_from_slice(&full.angles[row * stride..][..stride]);
    }

    /// Appends padding until there are `n_rows` rows.
    pub fn pad_to(&mut self, n_rows: usize) {
        while self.len() < n_rows {
            let row = self.len() as u32;
            self.push(0, 0, PAD_SLOT, row..row + 1, 0);
        }
    }

    fn push(&mut self, token: u32, position: u32, slot: u32, segment: Range<u32>, source: u32) {
        self.token.push(token);
        self.position.push(position);
        self.slot.push(slot);
        self.first_row.push(segment.start);
        self.end_row.push(segment.end);
        self.source.push(source);
        self.angles
            .resize(self.angles.len() + RopeTable::COUNT * self.table_len, 0.0);
    }

    /// The slot of a row; `None` for padding.
    pub fn slot(&self, row: usize) -> Option<usize> {
        let slot = self.slot[row];
        (slot != PAD_SLOT).then_some(slot as usize)
    }

    /// The position at which the row's segment begins: older tokens are in the
    /// cache, this one and younger ones are rows of the batch.
    pub fn segment_position(&self, row: usize) -> usize {
        self.position[row] as usize - (row - self.first_row[row] as usize)
    }

    /// Compressed rows of `ratio` tokens that the row sees: one that its own
    /// token completes counts.
    pub fn n_visible(&self, row: usize, ratio: usize) -> usize {
        (self.position[row] as usize + 1) / ratio
    }

    /// Index of the compressed row that this token completes, if it does.
    pub fn completes(&self, row: usize, ratio: usize) -> Option<usize> {
        let end = self.position[row] as usize + 1;
        end.is_multiple_of(ratio).then(|| end / ratio - 1)
    }

    /// The (cosine, sine) pairs of a row, `[rope_dim / 2, 2]`.
    pub fn angles(&self, row: usize, table: RopeTable) -> &[f32] {
        &self.angles[(row * RopeTable::COUNT + table as usize) * self.table_len..][..self.table_len]
    }
}
