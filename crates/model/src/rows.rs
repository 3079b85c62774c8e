//! Rows: what one step computes. A row is one token of one sequence at one
//! position; a batch is any mixture of them.

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
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The slot.
    pub slot: usize,
    /// The tokens, in order; at least one.
    pub tokens: Vec<u32>,
    /// Which of them need logits.
    pub outputs: Outputs,
    /// What each of those gets.
    pub wanted: Wanted,
}

impl Segment {
    /// Rows that need logits.
    pub fn n_outputs(&self) -> usize {
        match self.outputs {
            Outputs::None => 0,
            Outputs::Last => 1,
            Outputs::All => self.tokens.len(),
        }
    }
}

/// What an output gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// All logits.
    Logits,
    /// The largest logits, and the log-sum-exp of all at temperature 1 and at this one,
    /// which is finite and above zero.
    Candidates {
        /// The temperature.
        temperature: f32,
    },
}

/// The rows of one step: at most one segment for every slot.
#[derive(Clone, Debug, Default, PartialEq)]
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
        self.push_wanting(slot, tokens, outputs, Wanted::Logits);
    }

    /// The same, saying what the outputs get.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn push_wanting(&mut self, slot: usize, tokens: &[u32], outputs: Outputs, wanted: Wanted) {
        assert!(!tokens.is_empty(), "a segment has at least one token");
        assert!(
            self.segments.iter().all(|s| s.slot != slot),
            "slot {slot} is already in this batch"
        );
        self.segments.push(Segment {
            slot,
            tokens: tokens.to_vec(),
            outputs,
            wanted,
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
        self.segments.iter().map(Segment::n_outputs).sum()
    }
}

/// Where a segment's rows lie and what they see, beside their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPlace {
    /// The slot.
    pub slot: usize,
    /// First token of the slot's range in the token space that all slots share; a
    /// multiple of [`BASE_ALIGN`].
    pub base: usize,
    /// Position of the segment's first token.
    pub first_position: usize,
    /// What its rows see of each other.
    pub visibility: Visibility,
}

impl SegmentPlace {
    /// Causal rows of the first slot.
    pub fn first(first_position: usize) -> SegmentPlace {
        SegmentPlace {
            slot: 0,
            base: 0,
            first_position,
            visibility: Visibility::Causal,
        }
    }
}

/// What the rows of a segment see of each other and of the window before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Row `i` sees the rows before it and itself, and the last `window` tokens
    /// that end with itself.
    #[default]
    Causal,
    /// A block of draft rows: every row sees all rows of the block, and the last
    /// `window` tokens before the block.
    Block,
}

/// Multiple of tokens at which the range of a slot begins: a whole number of
/// compressed rows of every ratio.
pub const BASE_ALIGN: usize = 128;

/// The per-step numbers of a set of rows, as arrays a backend uploads as they
/// are, in this order. Everything that changes from step to step is in here and
/// nowhere else, so a recorded step can be replayed after rewriting it.
#[derive(Clone, Debug, Default)]
pub struct RowsImage {
    /// Token ids, `[n_rows]`.
    pub token: Vec<u32>,
    /// Positions, `[n_rows]`.
    pub position: Vec<u32>,
    /// Slots, `[n_rows]`; [`PAD_SLOT`] for padding.
    pub slot: Vec<u32>,
    /// First token of the slot's range in the token space of all slots, `[n_rows]`:
    /// compressed row `c` of `ratio` tokens is row `base / ratio + c` of its cache.
    pub base: Vec<u32>,
    /// Index of the first row of the same slot in this batch, `[n_rows]`.
    pub first_row: Vec<u32>,
    /// One past the last row of the same slot in this batch, `[n_rows]`.
    pub end_row: Vec<u32>,
    /// One past the last row of this batch that `attend` shows the row, `[n_rows]`.
    pub see_end: Vec<u32>,
    /// Lowest position of the window that `attend` shows the row, `[n_rows]`.
    pub window_start: Vec<u32>,
    /// For a subset of rows: the row of the full set each one is, `[n_rows]`.
    pub source: Vec<u32>,
    /// One over the temperature of the second log-sum-exp of `choose`, `[n_rows]`.
    pub inv_temperature: Vec<f32>,
    /// Rotary (cosine, sine) pairs, `[n_rows, RopeTable::COUNT, rope_dim / 2, 2]`;
    /// empty when the backend computes them itself.
    pub angles: Vec<f32>,
    table_len: usize,
    window: usize,
}

/// u32 arrays of a [`RowsImage`].
pub const N_ROW_IDS: usize = 9;

impl RowsImage {
    /// An empty image with room for `capacity` rows; filling it later does not
    /// allocate. Without `angles` it carries none.
    pub fn with_capacity(geometry: &Geometry, capacity: usize, angles: bool) -> RowsImage {
        let ids = || Vec::with_capacity(capacity);
        let table_len = if angles { geometry.rope_dim } else { 0 };
        RowsImage {
            token: ids(),
            position: ids(),
            slot: ids(),
            base: ids(),
            first_row: ids(),
            end_row: ids(),
            see_end: ids(),
            window_start: ids(),
            source: ids(),
            inv_temperature: Vec::with_capacity(capacity),
            angles: Vec::with_capacity(capacity * RopeTable::COUNT * table_len),
            table_len,
            window: geometry.window,
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

    /// Bytes of the arrays for `n_rows` rows, angles included.
    pub fn n_bytes(geometry: &Geometry, n_rows: usize) -> usize {
        n_rows * 4 * (N_ROW_IDS + 1 + RopeTable::COUNT * geometry.rope_dim)
    }

    fn ids_mut(&mut self) -> [&mut Vec<u32>; N_ROW_IDS] {
        [
            &mut self.token,
            &mut self.position,
            &mut self.slot,
            &mut self.base,
            &mut self.first_row,
            &mut self.end_row,
            &mut self.see_end,
            &mut self.window_start,
            &mut self.source,
        ]
    }

    /// The u32 arrays, in upload order.
    pub fn ids(&self) -> [&[u32]; N_ROW_IDS] {
        [
            &self.token,
            &self.position,
            &self.slot,
            &self.base,
            &self.first_row,
            &self.end_row,
            &self.see_end,
            &self.window_start,
            &self.source,
        ]
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        for ids in self.ids_mut() {
            ids.clear();
        }
        self.inv_temperature.clear();
        self.angles.clear();
    }

    /// Takes the rows of another image into the memory that is there.
    pub fn copy_from(&mut self, image: &RowsImage) {
        for (to, from) in self.ids_mut().into_iter().zip(image.ids()) {
            to.clear();
            to.extend_from_slice(from);
        }
        self.inv_temperature.clone_from(&image.inv_temperature);
        self.angles.clone_from(&image.angles);
        self.table_len = image.table_len;
        self.window = image.window;
    }

    /// Appends a segment.
    pub fn push_segment(
        &mut self,
        frequencies: &RopeFrequencies,
        place: SegmentPlace,
        tokens: &[u32],
    ) {
        let first_row = self.len();
        let end_row = first_row + tokens.len();
        for (i, token) in tokens.iter().enumerate() {
            let position = place.first_position + i;
            let row = first_row + i;
            let (see_end, window_end) = match place.visibility {
                Visibility::Causal => (row + 1, position + 1),
                Visibility::Block => (end_row, place.first_position),
            };
            self.push([
                *token,
                position as u32,
                place.slot as u32,
                place.base as u32,
                first_row as u32,
                end_row as u32,
                see_end as u32,
                window_end.saturating_sub(self.window) as u32,
                row as u32,
            ]);
            if self.table_len > 0 {
                let at = self.angles.len() - RopeTable::COUNT * self.table_len;
                frequencies.write_angles(position as u32, &mut self.angles[at..]);
            }
        }
    }

    /// Appends a copy of row `row` of `full`, remembering which it was, to be sampled
    /// at `temperature`.
    pub fn push_from(&mut self, full: &RowsImage, row: usize, temperature: f32) {
        let at = self.len() as u32;
        self.push([
            full.token[row],
            full.position[row],
            full.slot[row],
            full.base[row],
            at,
            at + 1,
            at + 1,
            full.window_start[row],
            row as u32,
        ]);
        *self.inv_temperature.last_mut().expect("just pushed") = 1.0 / temperature;
        let stride = RopeTable::COUNT * self.table_len;
        let at = self.angles.len() - stride;
        self.angles[at..].copy_from_slice(&full.angles[row * stride..][..stride]);
    }

    /// Appends padding until there are `n_rows` rows.
    pub fn pad_to(&mut self, n_rows: usize) {
        while self.len() < n_rows {
            let row = self.len() as u32;
            self.push([0, 0, PAD_SLOT, 0, row, row + 1, row + 1, 0, 0]);
        }
    }

    fn push(&mut self, ids: [u32; N_ROW_IDS]) {
        for (to, id) in self.ids_mut().into_iter().zip(ids) {
            to.push(id);
        }
        self.inv_temperature.push(1.0);
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

    /// Row of the caches of `ratio` at which the compressed rows of the row's slot begin.
    pub fn first_compressed(&self, row: usize, ratio: usize) -> usize {
        self.base[row] as usize / ratio
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
