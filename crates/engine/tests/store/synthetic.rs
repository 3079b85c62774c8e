//! States made of numbers that lie on the grids of cache rows.

use std::path::Path;
use std::time::SystemTime;

use ds4_engine::Group;
use ds4_engine::store::{
    Codec, CompatInputs, CompatKey, RowSource, SlotLayout, Store, StoreOptions, WeightsFingerprint,
};
use ds4_engine::{CacheRounding, Geometry, RowKind, SlotState, StoredRows};
use ds4_formats::small_float::bf16_from_f32;
use ds4_model::rounding::{index_round_row, kv_round_row};
use ds4_model::{BackendError, ElementType, LayerKind};

/// Rows that depend on a seed, the layer, the kind and the row's number.
pub(crate) struct Synthetic {
    pub(crate) geometry: Geometry,
    pub(crate) seed: u64,
    /// Rows read so far.
    pub(crate) n_rows_read: usize,
}

impl Synthetic {
    pub(crate) fn new(geometry: &Geometry, seed: u64) -> Synthetic {
        Synthetic {
            geometry: geometry.clone(),
            seed,
            n_rows_read: 0,
        }
    }

    fn row(&self, layer: usize, kind: RowKind, number: usize) -> Vec<u8> {
        let g = &self.geometry;
        let layer_kind = g.layers[layer];
        let mut random = Random(
            self.seed ^ (layer as u64) << 48 ^ (kind as u64) << 40 ^ (number as u64).rotate_left(7),
        );
        let mut normal = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal()).collect() };
        let bf16 = |row: Vec<f32>| -> Vec<u8> {
            row.into_iter()
                .flat_map(|x| bf16_from_f32(x).to_le_bytes())
                .collect()
        };
        match kind {
            RowKind::Window | RowKind::Compressed => {
                let mut row = normal(g.head_dim);
                kv_round_row(&mut row, g.rope_dim);
                bf16(row)
            }
            RowKind::Index => {
                let mut row = normal(g.index_dim);
                index_round_row(&mut row);
                bf16(row)
            }
            RowKind::Frontier | RowKind::IndexFrontier => {
                let row_dim = match kind {
                    RowKind::Frontier => g.head_dim,
                    _ => g.index_dim,
                };
                normal(2 * layer_kind.compressor_dim(row_dim))
                    .into_iter()
                    .flat_map(f32::to_le_bytes)
                    .collect()
            }
        }
    }

    /// The state that the rows of `len` tokens make.
    pub(crate) fn state(&mut self, len: usize) -> SlotState {
        let window = len.saturating_sub(self.geometry.window)..len;
        let mut rings = Vec::new();
        let mut rows = Vec::new();
        for (layer, kind) in self.geometry.layers.clone().into_iter().enumerate() {
            let n = Geometry::n_compressed(kind, len);
            let mut read = |row: RowKind, range| (row, self.rows(layer, row, range));
            let mut ring = vec![read(RowKind::Window, window.clone())];
            let mut append_only = Vec::new();
            match kind {
                LayerKind::Sliding => {}
                LayerKind::Hca => {
                    ring.push(read(RowKind::Frontier, len / 128 * 128..len));
                    append_only.push(read(RowKind::Compressed, 0..n));
                }
                LayerKind::Csa => {
                    let start = (len / 4 * 4).saturating_sub(4);
                    ring.push(read(RowKind::Frontier, start..len));
                    ring.push(read(RowKind::IndexFrontier, start..len));
                    append_only.push(read(RowKind::Compressed, 0..n));
                    append_only.push(read(RowKind::Index, 0..n));
                }
            }
            rings.push(ring);
            rows.push(append_only);
        }
        SlotState { len, rings, rows }
    }
}

impl Synthetic {
    /// Rows of one layer and kind.
    pub(crate) fn rows(
        &mut self,
        layer: usize,
        kind: RowKind,
        range: std::ops::Range<usize>,
    ) -> StoredRows {
        let bytes: Vec<u8> = range
            .clone()
            .flat_map(|number| self.row(layer, kind, number))
            .collect();
        self.n_rows_read += range.len();
        let element = match kind {
            RowKind::Frontier | RowKind::IndexFrontier => ElementType::F32,
            _ => ElementType::Bf16,
        };
        let width = match range.len() {
            0 => self.row(layer, kind, 0).len() / element.n_bytes(),
            n => bytes.len() / n / element.n_bytes(),
        };
        StoredRows {
            element,
            width,
            first: range.start,
            bytes,
        }
    }
}

impl RowSource for Synthetic {
    fn read_groups(&mut self, groups: &[Group]) -> Result<Vec<StoredRows>, BackendError> {
        let rows = groups
            .iter()
            .map(|(layer, kind, range)| self.rows(*layer, *kind, range.clone()));
        Ok(rows.collect())
    }
}

/// A small generator of numbers, the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Nearly normal: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        (0..4)
            .map(|i| (bits >> (16 * i) & 0xffff) as f32 / 65536.0 - 0.5)
            .sum::<f32>()
            * 1.7
    }
}

/// Two layers of each kind with narrow rows, so that files are a few kilobytes.
pub(crate) fn small_geometry() -> Geometry {
    let mut geometry = Geometry::flash();
    geometry.layers = vec![LayerKind::Sliding, LayerKind::Csa, LayerKind::Hca];
    geometry.head_dim = 24;
    geometry.rope_dim = 8;
    geometry.index_dim = 16;
    geometry.window = 4;
    geometry
}

pub(crate) fn key_of(geometry: &Geometry, layout: &SlotLayout, weights: u8) -> CompatKey {
    let inputs = CompatInputs {
        geometry,
        weights: WeightsFingerprint([weights; 32]),
        tokenizer: [0; 32],
        numerics_class: "test",
    };
    CompatKey::new(&inputs, layout)
}

pub(crate) const SMALL_BLOCK: usize = 16;

pub(crate) fn small_layout() -> SlotLayout {
    SlotLayout::new(&small_geometry(), CacheRounding::Official).with_block_tokens(SMALL_BLOCK)
}

pub(crate) fn small_options() -> StoreOptions {
    StoreOptions {
        min_tokens: 1,
        codec: Codec::None,
        n_load_threads: 2,
        keep_free_bytes: 0,
        ..StoreOptions::default()
    }
}

/// A store of small states.
pub(crate) fn open(dir: &Path, options: StoreOptions) -> Store {
    let layout = small_layout();
    let key = key_of(&small_geometry(), &layout, 1);
    Store::open(dir, options, key, layout).expect("the store opens")
}

/// Tokens of one conversation: equal numbers and starts give equal tokens.
pub(crate) fn tokens(conversation: u64, n: usize) -> Vec<u32> {
    let mut random = Random(conversation);
    (0..n).map(|_| random.below(1000) as u32).collect()
}

/// A clock that stands ahead of the real one by an hour and ten minutes, so
/// that files just written are old.
pub(crate) fn later() -> SystemTime {
    SystemTime::now() + std::time::Duration::from_secs(4200)
}
