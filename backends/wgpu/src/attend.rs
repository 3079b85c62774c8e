//! Attention over tiles of keys, and the indexer's scores: the host side.

use std::sync::Arc;

use ds4_model::{Attend, IndexScores, RopeTable};

use crate::backend::{Rows, WgpuBackend};
use crate::bound::Bound;
use crate::few::FEW_ROWS;
use crate::kernels::Specialisation;
use crate::memory::Buffer;
use crate::ops::compressed_operands;
use crate::weight::Weight;

/// Pieces that the keys of attention are split into, times rows.
pub(crate) const SPLITS: usize = 64;

/// Most pieces of a row's keys.
const ROW_SPLITS: usize = 20;

impl WgpuBackend {
    /// Whether `record_index_scores_few` takes these rows.
    pub(crate) fn scores_tiles(&self, cache: &Buffer) -> bool {
        let g = &self.geometry;
        cache.is_bf16()
            && g.index_dim <= 128
            && g.n_index_heads.is_multiple_of(8)
            && g.n_index_heads <= 64
    }

    pub(crate) fn record_index_scores_few(
        &mut self,
        rows: &Rows,
        inputs: &IndexScores<'_, Buffer>,
        scores: &Buffer,
    ) {
        let (n_heads, dim) = (self.geometry.n_index_heads, self.geometry.index_dim);
        let scale = (dim as f32).powf(-0.5) * (n_heads as f32).powf(-0.5);
        let tile = &inputs.tile;
        self.record(
            &Specialisation::of("index_scores_few")
                .with("INDEX_DIM", dim)
                .with("N_HEADS", n_heads),
            &[
                (0, rows.bind()),
                (1, inputs.queries.bind()),
                (2, inputs.weights.bind()),
                (3, inputs.cache.bind()),
                (4, scores.bind()),
            ],
            &[
                rows.n(),
                tile.rows.start as u32,
                scale.to_bits(),
                tile.stride as u32,
            ],
            [tile.stride.div_ceil(8) as u32, tile.rows.len() as u32, 1],
        );
    }

    /// Whether `record_attend_tile` takes these rows: 8 channels at a time, of bf16.
    pub(crate) fn attends_tiles(&self, ring: &Buffer) -> bool {
        let dim = self.geometry.head_dim;
        ring.is_bf16()
            && dim.is_multiple_of(64)
            && dim <= 512
            && self.geometry.rope_dim.is_multiple_of(4)
    }

    /// Whether attention over such rows goes on cooperative matrices of 16 by 16. Narrow heads, which
    /// are those of small models, stay in f32.
    pub(crate) fn attends_matrices(&self, ring: &Buffer) -> bool {
        let c = &self.gpu.capabilities;
        !self.plain
            && self.attends_tiles(ring)
            && c.matrices_16()
            && c.matrix_attention
            && self.geometry.n_heads.is_multiple_of(16)
            && self.geometry.head_dim >= 256
    }

    /// Attention over tiles of keys. With `raw`, queries are normed and rotated by this table, and in
    /// a step of few rows the result is rotated back, with its codes. Many rows come raw only where
    /// `attends_matrices` holds.
    pub(crate) fn record_attend_tile(
        &mut self,
        rows: &Rows,
        inputs: &Attend<'_, Buffer, Weight>,
        out: &Buffer,
        raw: Option<RopeTable>,
    ) {
        let g = self.geometry.clone();
        let ring = inputs.ring;
        let (mode, cache, ratio, selected) = compressed_operands(&inputs.compressed, ring);
        let splits = if rows.n() <= FEW_ROWS {
            (SPLITS / rows.n().next_power_of_two() as usize).min(ROW_SPLITS)
        } else {
            1
        };
        let split = rows.n() <= FEW_ROWS;
        let matrices = self.attends_matrices(ring);
        let what = if matrices {
            Specialisation::of("attend_matrix")
                .with("MATRIX", 16usize)
                .with("K_STEPS", g.head_dim / 64)
                .with("Q_EACH", g.head_dim / 32)
        } else {
            Specialisation::of("attend_tile")
        };
        let heads = if matrices { 16 } else { 4 };
        let what = what
            .with("HEAD_DIM", g.head_dim)
            .with("COMPRESSED", mode)
            .with("SPLIT", split)
            .with("RAW", raw.is_some());
        let sums = Arc::clone(&self.split_sums);
        let stats = Arc::clone(&self.split_stats);
        let half = (g.rope_dim / 2) as u32;
        let table = raw.unwrap_or(RopeTable::Plain) as u32;
        let result: Bound<'_> = if split { sums.whole() } else { out.bind() };
        self.record(
            &what,
            &[
                (0, rows.bind()),
                (1, inputs.q.bind()),
                (2, inputs.kv.bind()),
                (3, ring.bind()),
                (4, cache.bind()),
                (5, selected.bind()),
                (6, inputs.sinks.elements()),
                (7, result),
                (8, stats.whole()),
            ],
            &[
                rows.n(),
                g.n_heads as u32,
                (g.head_dim as f32).powf(-0.5).to_bits(),
                ring.shape.n_rows as u32,
                ratio as u32,
                selected.width() as u32,
                splits as u32,
                half,
                table,
                g.rms_eps.to_bits(),
            ],
            [g.n_heads.div_ceil(heads) as u32, rows.n(), splits as u32],
        );
        if !split {
            return;
        }
        let codes = self.codes(out);
        self.record(
            &Specialisation::of("attend_combine")
                .with("HEAD_DIM", g.head_dim)
                .with("INVERSE", raw.is_some())
                .with("QUANTISED", raw.is_some()),
            &[
                (0, rows.bind()),
                (1, sums.whole()),
                (2, stats.whole()),
                (3, out.bind()),
                (4, codes.codes.whole()),
                (5, codes.scales.whole()),
            ],
            &[rows.n(), g.n_heads as u32, splits as u32, half, table],
            [g.n_heads as u32, rows.n(), 1],
        );
    }
}
