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

mod contents;
mod errors;
mod shape;
mod state;
mod timeline;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Backend;
use crate::forward::{Step, forward};
use crate::geometry::{Geometry, LayerKind};
use crate::operands::{BackendError, N_CANDIDATES, Pass, Place, ReadPart, Recording, StepKey};
use crate::rope::RopeFrequencies;
use crate::rows::{Batch, Outputs, RowsImage, SegmentPlace, Visibility, Wanted};
use crate::weights::Network;

use state::buffers_mut;
use timeline::{Origin, Timeline};

pub use contents::{RowKind, SlotContents};
pub use errors::{ImportError, RestoreError, RewindError, StepError};
pub use shape::{
    CacheRounding, CompressedCache, CompressorScratch, IndexCache, IndexScratch, LayerCache,
    MemoryPlan, REWIND_ROWS, Scratch, SessionShape, StepShape,
};
pub use state::{Frontier, SlotState, StoredRows};

/// Numbers the sessions of this process.
static N_SESSIONS: AtomicU64 = AtomicU64::new(0);

/// What a step gives for one of its outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutputRow<'a> {
    /// All logits, `[n_vocab]`.
    Logits(&'a [f32]),
    /// The largest of them.
    Candidates(Candidates<'a>),
}

/// The largest logits of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidates<'a> {
    /// Token ids by descending logit, the lowest first among equals.
    pub ids: &'a [u32],
    /// Their logits.
    pub values: &'a [f32],
    /// Log-sum-exp of all logits at temperature 1; NaN when a logit is not finite.
    pub lse: f32,
    /// The same at the temperature that was asked for.
    pub lse_at_temperature: f32,
}

/// A step that was launched.
#[derive(Debug, Default)]
struct Flight {
    /// Its slots.
    slots: Vec<usize>,
    /// What each of its outputs wants.
    wanted: Vec<Wanted>,
    chooses: bool,
}

/// Slots, scratch and timelines on one backend.
pub struct Session<B: Backend> {
    number: u64,
    geometry: Geometry,
    contents: SlotContents,
    shape: SessionShape,
    bases: Vec<usize>,
    frequencies: RopeFrequencies,
    caches: Vec<LayerCache<B::Buffer>>,
    scratch: Scratch<B::Buffer>,
    rows: B::Rows,
    outputs: B::Rows,
    rows_image: RowsImage,
    outputs_image: RowsImage,
    timelines: Vec<Timeline>,
    flight: Option<Flight>,
    /// The outputs of the last step: what they wanted, and on the host what they got.
    wanted: Vec<Wanted>,
    logits: Vec<f32>,
    ids: Vec<u32>,
    values: Vec<f32>,
    lse: Vec<f32>,
    /// Little-endian bytes on their way to the four above.
    bytes: Vec<u8>,
}

impl<B: Backend> Session<B> {
    /// Allocates everything a session of this shape needs.
    pub fn open(backend: &mut B, shape: SessionShape) -> Result<Session<B>, BackendError> {
        let geometry = backend.geometry().clone();
        let limits = backend.limits();
        let mut alloc = |element, shape| backend.alloc(element, shape);
        let caches = shape.caches(&geometry, &mut alloc)?;
        let scratch = shape.scratch(&geometry, &limits, &mut alloc)?;
        let image = |capacity| RowsImage::with_capacity(&geometry, capacity, limits.host_angles);
        let n_candidates = shape.max_outputs * N_CANDIDATES.min(geometry.n_vocab);
        Ok(Session {
            number: N_SESSIONS.fetch_add(1, Ordering::Relaxed),
            contents: SlotContents::new(&geometry, shape.rounding),
            bases: shape.bases(),
            frequencies: RopeFrequencies::new(&geometry),
            rows: backend.alloc_rows(shape.max_rows)?,
            outputs: backend.alloc_rows(shape.max_outputs)?,
            rows_image: image(shape.max_rows),
            outputs_image: image(shape.max_outputs),
            timelines: vec![Timeline::default(); shape.n_slots()],
            flight: None,
            wanted: Vec::with_capacity(shape.max_outputs),
            logits: Vec::with_capacity(geometry.n_vocab),
            ids: Vec::with_capacity(n_candidates),
            values: Vec::with_capacity(n_candidates),
            lse: Vec::with_capacity(2 * shape.max_outputs),
            bytes: Vec::new(),
            caches,
            scratch,
            geometry,
            shape,
        })
    }

    /// Gives its memory back.
    pub fn close(self, backend: &mut B) {
        backend.end_session(self.number);
    }

    /// Its sizes.
    pub fn shape(&self) -> &SessionShape {
        &self.shape
    }

    /// Tokens in a slot, those of a launched step included.
    pub fn len(&self, slot: usize) -> usize {
        self.timelines[slot].len
    }

    /// Whether a slot holds nothing.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Starts a step that appends the batch's tokens to their slots. Nothing else but
    /// [`Session::wait`] may follow.
    ///
    /// # Panics
    /// If a step was launched and not waited for: an error of the scheduler.
    pub fn launch(
        &mut self,
        backend: &mut B,
        network: &Network<B::Weight>,
        batch: &Batch,
    ) -> Result<(), StepError> {
        assert!(self.flight.is_none(), "a step is under way");
        let key = self.prepare(backend, batch)?;
        let recording = backend.begin(&key);
        backend.write_rows(&mut self.rows, &self.rows_image);
        backend.write_rows(&mut self.outputs, &self.outputs_image);
        if recording == Recording::Record {
            let step = Step {
                rows: &self.rows,
                outputs: &self.outputs,
                shape: &key.shape,
                taps: &self.shape.taps,
            };
            forward(backend, network, &mut self.caches, &mut self.scratch, &step);
        }
        let mut flight = Flight {
            chooses: key.shape.chooses,
            ..Flight::default()
        };
        for segment in batch.segments() {
            flight.slots.push(segment.slot);
            let n_outputs = segment.n_outputs();
            flight
                .wanted
                .extend(std::iter::repeat_n(segment.wanted, n_outputs));
        }
        if let Err(error) = backend.launch() {
            self.lose(&flight);
            return Err(error.into());
        }
        for segment in batch.segments() {
            let timeline = &mut self.timelines[segment.slot];
            timeline.len += segment.tokens.len();
            timeline.high = timeline.high.max(timeline.len);
        }
        backend.anticipate(&key);
        self.flight = Some(flight);
        Ok(())
    }

    /// Waits for the step that was launched and fetches what its outputs wanted. On an
    /// error its slots are empty and the others as they were. Without a step under way
    /// it does nothing.
    pub fn wait(&mut self, backend: &mut B) -> Result<(), StepError> {
        let Some(flight) = self.flight.take() else {
            return Ok(());
        };
        let done = backend.wait().and_then(|()| self.fetch(backend, &flight));
        if let Err(error) = done {
            self.lose(&flight);
            self.wanted.clear();
            return Err(error.into());
        }
        self.wanted.clear();
        self.wanted.extend(&flight.wanted);
        Ok(())
    }

    /// [`Session::launch`], [`Session::wait`], and the logits of all outputs, f32
    /// `[n_outputs, n_vocab]`, if they all want logits.
    pub fn step(
        &mut self,
        backend: &mut B,
        network: &Network<B::Weight>,
        batch: &Batch,
    ) -> Result<&[f32], StepError> {
        self.launch(backend, network, batch)?;
        self.wait(backend)?;
        Ok(&self.logits)
    }

    /// The logits of those outputs of the last step that wanted them, `[n, n_vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Outputs of the last step.
    pub fn n_outputs(&self) -> usize {
        self.wanted.len()
    }

    /// What the last step gave for its output number `index`.
    pub fn output(&self, index: usize) -> OutputRow<'_> {
        match self.wanted[index] {
            Wanted::Logits => {
                let before = self.wanted[..index].iter();
                let row = before.filter(|w| **w == Wanted::Logits).count();
                let n_vocab = self.geometry.n_vocab;
                OutputRow::Logits(&self.logits[row * n_vocab..][..n_vocab])
            }
            Wanted::Candidates { .. } => {
                let n = N_CANDIDATES.min(self.geometry.n_vocab);
                OutputRow::Candidates(Candidates {
                    ids: &self.ids[index * n..][..n],
                    values: &self.values[index * n..][..n],
                    lse: self.lse[2 * index],
                    lse_at_temperature: self.lse[2 * index + 1],
                })
            }
        }
    }

    /// All logits of an output of the last step, whatever it wanted, into `logits`,
    /// `[n_vocab]`. They are there until the next step is launched.
    pub fn read_logits(
        &self,
        backend: &mut B,
        index: usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let mut bytes = vec![0; self.geometry.n_vocab * 4];
        let at = Place {
            slot: 0,
            row: index,
        };
        backend.read(&self.scratch.logits, at, &mut bytes)?;
        logits.clear();
        logits.extend(floats(&bytes));
        Ok(())
    }

    /// Reads what the outputs of a step wanted, with one wait.
    fn fetch(&mut self, backend: &mut B, flight: &Flight) -> Result<(), BackendError> {
        let n_outputs = flight.wanted.len();
        let n_candidates = match flight.chooses {
            true => n_outputs * N_CANDIDATES.min(self.geometry.n_vocab),
            false => 0,
        };
        let n_lse = if flight.chooses { 2 * n_outputs } else { 0 };
        let rows: Vec<usize> = (0..n_outputs)
            .filter(|row| flight.wanted[*row] == Wanted::Logits)
            .collect();
        let row_bytes = self.geometry.n_vocab * 4;
        let n_bytes = rows.len() * row_bytes + (2 * n_candidates + n_lse) * 4;
        self.bytes.resize(n_bytes, 0);
        let (logits, rest) = self.bytes.split_at_mut(rows.len() * row_bytes);
        let (ids, rest) = rest.split_at_mut(n_candidates * 4);
        let (values, lse) = rest.split_at_mut(n_candidates * 4);
        let part = |buffer, row, bytes| ReadPart {
            buffer,
            at: Place { slot: 0, row },
            bytes,
        };
        let mut parts = Vec::with_capacity(rows.len() + 3);
        // Neighbouring rows are one piece.
        let mut rest = logits;
        for rows in rows.chunk_by(|a, b| a + 1 == *b) {
            let (bytes, tail) = rest.split_at_mut(rows.len() * row_bytes);
            parts.push(part(&self.scratch.logits, rows[0], bytes));
            rest = tail;
        }
        if flight.chooses {
            let choice = &self.scratch.choice;
            parts.push(part(&choice.ids, 0, ids));
            parts.push(part(&choice.values, 0, values));
            parts.push(part(&choice.lse, 0, lse));
        }
        if !parts.is_empty() {
            backend.read_many(&mut parts)?;
        }
        let (logits, rest) = self.bytes.split_at(rows.len() * row_bytes);
        let (ids, rest) = rest.split_at(n_candidates * 4);
        let (values, lse) = rest.split_at(n_candidates * 4);
        refill(&mut self.logits, floats(logits));
        refill(&mut self.values, floats(values));
        refill(&mut self.lse, floats(lse));
        let ids = ids.chunks_exact(4);
        refill(
            &mut self.ids,
            ids.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        );
        Ok(())
    }

    /// Empties the slots of a step that failed.
    fn lose(&mut self, flight: &Flight) {
        for slot in &flight.slots {
            self.clear(*slot);
        }
    }

    /// Checks a batch and fills the images.
    fn prepare(&mut self, backend: &B, batch: &Batch) -> Result<StepKey, StepError> {
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
            let n_slots = self.shape.n_slots();
            if segment.slot >= n_slots {
                return Err(StepError::TooLarge {
                    what: "slot number",
                    found: segment.slot,
                    limit: n_slots - 1,
                });
            }
            let len = self.timelines[segment.slot].len;
            let capacity = self.shape.capacities[segment.slot];
            if len + segment.tokens.len() > capacity {
                return Err(StepError::ContextFull {
                    len,
                    n_new: segment.tokens.len(),
                    capacity,
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
        let mut chooses = false;
        for segment in batch.segments() {
            let first_row = self.rows_image.len();
            let n = segment.tokens.len();
            let len = self.timelines[segment.slot].len;
            let place = SegmentPlace {
                slot: segment.slot,
                base: self.bases[segment.slot],
                first_position: len,
                visibility: Visibility::Causal,
            };
            self.rows_image
                .push_segment(&self.frequencies, place, &segment.tokens);
            let wanted = match segment.outputs {
                Outputs::None => 0..0,
                Outputs::Last => first_row + n - 1..first_row + n,
                Outputs::All => first_row..first_row + n,
            };
            let temperature = match segment.wanted {
                Wanted::Logits => 1.0,
                Wanted::Candidates { temperature } => {
                    chooses |= !wanted.is_empty();
                    temperature
                }
            };
            for row in wanted {
                self.outputs_image
                    .push_from(&self.rows_image, row, temperature);
            }
            longest = longest.max(len + n);
        }
        let shape = self
            .shape
            .step(backend, n_rows, n_outputs, longest, chooses);
        self.rows_image.pad_to(shape.n_rows);
        self.outputs_image.pad_to(shape.n_outputs);
        Ok(StepKey {
            session: self.number,
            pass: Pass::Backbone,
            shape,
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
    ///
    /// # Panics
    /// If `to` cannot hold what `from` holds: an error of the scheduler.
    pub fn fork(&mut self, backend: &mut B, from: usize, to: usize) {
        if from == to {
            return;
        }
        let timeline = self.timelines[from].clone();
        self.copy_rows(backend, from, to, &timeline);
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
    ///
    /// # Panics
    /// As [`Session::fork`].
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
        // With nothing in its rings, only append-only rows are used.
        let at = Timeline {
            len: frontier.len,
            ..Timeline::default()
        };
        self.copy_rows(backend, from, to, &at);
        self.write_rings(backend, to, frontier)?;
        let target = &mut self.timelines[to];
        target.len = frontier.len;
        target.base = frontier.len;
        target.high = frontier.len;
        target.origin = Some(origin);
        Ok(())
    }

    /// Copies the rows of every cache that a timeline may have filled.
    fn copy_rows(&mut self, backend: &mut B, from: usize, to: usize, timeline: &Timeline) {
        let capacity = self.shape.capacities[to];
        assert!(
            timeline.len <= capacity,
            "{} tokens in a slot of {capacity}",
            timeline.len
        );
        for layer in 0..self.caches.len() {
            let kind = self.geometry.layers[layer];
            for &row in RowKind::of(kind) {
                let n_rows = match self.ring_rows(kind, row) {
                    Some(n_ring) => n_ring.min(timeline.high),
                    None => Geometry::n_compressed(kind, timeline.len),
                };
                if n_rows == 0 {
                    continue;
                }
                let first = |slot| {
                    let mut places = self.places(slot, layer, row, 0..n_rows);
                    places.next().expect("at least one row").0
                };
                let (source, target) = (first(from), first(to));
                let mut buffers = buffers_mut(&mut self.caches[layer]);
                let (_, buffer) = buffers
                    .find(|(found, _)| *found == row)
                    .expect("a kind of this layer");
                backend.copy_rows(buffer, source, target, n_rows);
            }
        }
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

    /// Rows of a ring; `None` when the rows are append-only.
    fn ring_rows(&self, kind: LayerKind, row: RowKind) -> Option<usize> {
        let looks_back = match row {
            RowKind::Window => self.geometry.window,
            RowKind::Frontier | RowKind::IndexFrontier => kind.n_pooled(),
            RowKind::Compressed | RowKind::Index => return None,
        };
        Some(looks_back + self.shape.rewind_rows)
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let values = bytes.chunks_exact(4);
    values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn refill<T>(to: &mut Vec<T>, from: impl Iterator<Item = T>) {
    to.clear();
    to.extend(from);
}
