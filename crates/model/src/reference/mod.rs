//! The scalar reference: every op as plainly as it can be written.
//!
//! It is the meaning of the ops. Fast backends are tested against it, and it is
//! itself tested against values of independent implementations. Nothing here is
//! optimised, and nothing here should be.

mod add;
mod add_position_bias;
mod attend;
mod choose;
mod embed;
mod experts_down;
mod experts_gate_up;
mod gate_up;
mod hc_gates;
mod hc_head;
mod hc_post;
mod hc_pre;
mod head_norm;
mod index_round;
mod index_scores;
mod kv_round;
mod matmul;
mod matmul_grouped;
mod pool;
mod rms_norm;
mod rope;
mod route_hash;
mod route_top_k;
mod router_scores;
mod select_rows;
mod store_compressed;
mod store_frontier;
mod store_window;
mod tap;
mod top_k;

use std::ops::Range;

use ds4_formats::small_float::{bf16_from_f32, bf16_to_f32};
use ds4_formats::{GgmlType, Tensor, quant};

use crate::backend::Backend;
use crate::geometry::Geometry;
use crate::operands::*;
use crate::rope::RopeTable;
use crate::rows::RowsImage;
use crate::weights::{HyperConnection, Requirement};

/// The scalar backend. Ops run when they are called.
#[derive(Debug)]
pub struct Reference {
    geometry: Geometry,
}

impl Reference {
    /// A backend for models of this geometry.
    pub fn new(geometry: &Geometry) -> Reference {
        Reference {
            geometry: geometry.clone(),
        }
    }
}

/// A buffer of the reference. Floats are kept as f32 whatever the element;
/// bf16 ones are rounded when they are stored.
#[derive(Clone, Debug)]
pub struct Buffer {
    element: ElementType,
    shape: Shape,
    floats: Vec<f32>,
    ids: Vec<u32>,
}

impl Buffer {
    fn index(&self, slot: usize, row: usize) -> Range<usize> {
        assert!(slot < self.shape.n_slots && row < self.shape.n_rows);
        let start = (slot * self.shape.n_rows + row) * self.shape.width;
        start..start + self.shape.width
    }

    fn width(&self) -> usize {
        self.shape.width
    }

    fn n_rows(&self) -> usize {
        self.shape.n_rows
    }

    fn row(&self, row: usize) -> &[f32] {
        self.slot_row(0, row)
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let range = self.index(0, row);
        &mut self.floats[range]
    }

    fn slot_row(&self, slot: usize, row: usize) -> &[f32] {
        &self.floats[self.index(slot, row)]
    }

    fn store(&mut self, slot: usize, row: usize, at: usize, values: &[f32]) {
        let start = self.index(slot, row).start + at;
        let out = &mut self.floats[start..start + values.len()];
        out.copy_from_slice(values);
        if self.element == ElementType::Bf16 {
            for x in out {
                *x = bf16_to_f32(bf16_from_f32(*x));
            }
        }
    }

    /// Row `row` of compressed or index rows.
    fn cached(&self, row: usize) -> &[f32] {
        self.slot_row(0, row)
    }

    fn ids(&self, row: usize) -> &[u32] {
        &self.ids[self.index(0, row)]
    }

    fn write(&mut self, at: Place, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.index(at.slot, at.row).start;
        match self.element {
            ElementType::F32 => {
                for (x, b) in self.floats[start..].iter_mut().zip(bytes.chunks_exact(4)) {
                    *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            ElementType::Bf16 => {
                for (x, b) in self.floats[start..].iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = bf16_to_f32(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            ElementType::U32 => {
                for (x, b) in self.ids[start..].iter_mut().zip(bytes.chunks_exact(4)) {
                    *x = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }

    fn read(&self, at: Place, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.index(at.slot, at.row).start;
        match self.element {
            ElementType::F32 => {
                for (b, x) in bytes.chunks_exact_mut(4).zip(&self.floats[start..]) {
                    b.copy_from_slice(&x.to_le_bytes());
                }
            }
            ElementType::Bf16 => {
                for (b, x) in bytes.chunks_exact_mut(2).zip(&self.floats[start..]) {
                    b.copy_from_slice(&bf16_from_f32(*x).to_le_bytes());
                }
            }
            ElementType::U32 => {
                for (b, x) in bytes.chunks_exact_mut(4).zip(&self.ids[start..]) {
                    b.copy_from_slice(&x.to_le_bytes());
                }
            }
        }
    }

    fn ids_mut(&mut self, row: usize) -> &mut [u32] {
        let range = self.index(0, row);
        &mut self.ids[range]
    }
}

/// A weight as it is in the file; rows are decoded when they are used.
#[derive(Clone, Debug)]
pub struct Weight {
    tensor: Tensor,
    floats: Vec<f32>,
}

impl Weight {
    fn n_in(&self) -> usize {
        self.tensor.ne[0] as usize
    }

    fn n_out(&self) -> usize {
        self.tensor.ne.get(1).map_or(1, |n| *n as usize)
    }

    /// Decodes row `i` of the matrix (of all experts' rows, one after another).
    fn decode(&self, i: usize, out: &mut [f32]) {
        quant::decode_row(self.tensor.ty, self.tensor.row(i), out);
    }

    /// A `Vector`, decoded when it was uploaded.
    fn vector(&self) -> &[f32] {
        &self.floats
    }

    /// Row `i` of `Ids`.
    fn ids(&self, i: usize) -> impl Iterator<Item = u32> {
        self.tensor
            .row(i)
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

/// Sum of products in eight partial sums, which is what keeps the reference
/// usable in tests without changing what it says.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8
        .remainder()
        .iter()
        .zip(b8.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

fn mean_square(x: &[f32]) -> f32 {
    dot(x, x) / x.len() as f32
}

/// `weight * silu(min(g, clamp)) * clamp(u, ±clamp)`.
fn swiglu(g: f32, u: f32, clamp: f32, weight: f32) -> f32 {
    weight * silu(g.min(clamp)) * u.clamp(-clamp, clamp)
}

/// Rows that are not padding.
fn real(rows: &RowsImage) -> impl Iterator<Item = usize> {
    (0..rows.len()).filter(|r| rows.slot(*r).is_some())
}

impl Backend for Reference {
    type Buffer = Buffer;
    type Weight = Weight;
    type Rows = RowsImage;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn upload(&mut self, need: &Requirement, tensor: Tensor) -> Result<Weight, BackendError> {
        let floats = match need.role {
            WeightRole::Vector => tensor.to_f32(),
            _ => Vec::new(),
        };
        debug_assert_eq!(need.role == WeightRole::Ids, tensor.ty == GgmlType::I32);
        Ok(Weight { tensor, floats })
    }

    fn alloc(&mut self, element: ElementType, shape: Shape) -> Result<Buffer, BackendError> {
        let (n_floats, n_ids) = match element {
            ElementType::U32 => (0, shape.len()),
            _ => (shape.len(), 0),
        };
        Ok(Buffer {
            element,
            shape,
            floats: vec![0.0; n_floats],
            ids: vec![0; n_ids],
        })
    }

    fn alloc_rows(&mut self, capacity: usize) -> Result<RowsImage, BackendError> {
        Ok(RowsImage::with_capacity(&self.geometry, capacity, true))
    }

    fn write_rows(&mut self, rows: &mut RowsImage, image: &RowsImage) {
        rows.copy_from(image);
    }

    fn write_many(&mut self, parts: &mut [WritePart<'_, Buffer>]) -> Result<(), BackendError> {
        for part in parts {
            for (at, bytes) in &part.pieces {
                part.buffer.write(*at, bytes);
            }
        }
        Ok(())
    }

    fn read_many(&mut self, parts: &mut [ReadPart<'_, Buffer>]) -> Result<(), BackendError> {
        for part in parts {
            part.buffer.read(part.at, part.bytes);
        }
        Ok(())
    }

    fn copy_rows(&mut self, buffer: &mut Buffer, from: Place, to: Place, n_rows: usize) {
        let n = n_rows * buffer.width();
        let source = buffer.index(from.slot, from.row).start;
        let target = buffer.index(to.slot, to.row).start;
        match buffer.element {
            ElementType::U32 => buffer.ids.copy_within(source..source + n, target),
            _ => buffer.floats.copy_within(source..source + n, target),
        }
    }

    fn launch(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn embed(&mut self, rows: &RowsImage, table: &Weight, streams: &mut Buffer) {
        embed::embed(rows, table, streams);
    }

    fn hc_gates(
        &mut self,
        rows: &RowsImage,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &mut Buffer,
    ) {
        hc_gates::hc_gates(&self.geometry, rows, streams, hc, gates);
    }

    fn hc_pre(&mut self, rows: &RowsImage, streams: &Buffer, gates: &Buffer, x: &mut Buffer) {
        hc_pre::hc_pre(rows, streams, gates, x);
    }

    fn hc_post(&mut self, rows: &RowsImage, y: &Buffer, gates: &Buffer, streams: &mut Buffer) {
        hc_post::hc_post(&self.geometry, rows, y, gates, streams);
    }

    fn hc_head(
        &mut self,
        rows: &RowsImage,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        h: &mut Buffer,
    ) {
        hc_head::hc_head(&self.geometry, rows, streams, hc, h);
    }

    fn tap(&mut self, rows: &RowsImage, streams: &Buffer, at: usize, taps: &mut Buffer) {
        tap::tap(&self.geometry, rows, streams, at, taps);
    }

    fn choose(&mut self, rows: &RowsImage, logits: &Buffer, choice: &mut Choice<Buffer>) {
        choose::choose(rows, logits, choice);
    }

    fn select_rows(&mut self, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
        select_rows::select_rows(rows, x, out);
    }

    fn rms_norm(&mut self, rows: &RowsImage, weight: &Weight, x: &mut Buffer) {
        rms_norm::rms_norm(self.geometry.rms_eps, rows, weight, x);
    }

    fn matmul(&mut self, rows: &RowsImage, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        matmul::matmul(rows, weight, x, out);
    }

    fn matmul_grouped(&mut self, rows: &RowsImage, weight: &Weight, x: &Buffer, out: &mut Buffer) {
        matmul_grouped::matmul_grouped(&self.geometry, rows, weight, x, out);
    }

    fn add(&mut self, rows: &RowsImage, x: &Buffer, out: &mut Buffer) {
        add::add(rows, x, out);
    }

    fn head_norm(&mut self, rows: &RowsImage, head_dim: usize, x: &mut Buffer) {
        head_norm::head_norm(self.geometry.rms_eps, rows, head_dim, x);
    }

    fn rope(
        &mut self,
        rows: &RowsImage,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &mut Buffer,
    ) {
        rope::rope(&self.geometry, rows, table, rotation, head_dim, x);
    }

    fn kv_round(&mut self, rows: &RowsImage, x: &mut Buffer) {
        kv_round::kv_round(&self.geometry, rows, x);
    }

    fn index_round(&mut self, rows: &RowsImage, x: &mut Buffer) {
        index_round::index_round(&self.geometry, rows, x);
    }

    fn store_window(&mut self, rows: &RowsImage, kv: &Buffer, window: &mut Buffer) {
        store_window::store_window(rows, kv, window);
    }

    fn add_position_bias(
        &mut self,
        rows: &RowsImage,
        ape: &Weight,
        ratio: usize,
        gate: &mut Buffer,
    ) {
        add_position_bias::add_position_bias(rows, ape, ratio, gate);
    }

    fn pool(&mut self, rows: &RowsImage, inputs: Pool<'_, Buffer>, pooled: &mut Buffer) {
        pool::pool(rows, &inputs, pooled);
    }

    fn store_compressed(
        &mut self,
        rows: &RowsImage,
        ratio: usize,
        pooled: &Buffer,
        cache: &mut Buffer,
    ) {
        store_compressed::store_compressed(rows, ratio, pooled, cache);
    }

    fn store_frontier(
        &mut self,
        rows: &RowsImage,
        kv: &Buffer,
        gate: &Buffer,
        frontier: &mut Buffer,
    ) {
        store_frontier::store_frontier(rows, kv, gate, frontier);
    }

    fn index_scores(
        &mut self,
        rows: &RowsImage,
        inputs: IndexScores<'_, Buffer>,
        scores: &mut Buffer,
    ) {
        index_scores::index_scores(&self.geometry, rows, &inputs, scores);
    }

    fn top_k(&mut self, rows: &RowsImage, tile: ScoreTile, scores: &Buffer, selected: &mut Buffer) {
        top_k::top_k(rows, &tile, scores, selected);
    }

    fn attend(&mut self, rows: &RowsImage, inputs: Attend<'_, Buffer, Weight>, out: &mut Buffer) {
        attend::attend(&self.geometry, rows, &inputs, out);
    }

    fn router_scores(&mut self, rows: &RowsImage, scores: &mut Buffer) {
        router_scores::router_scores(rows, scores);
    }

    fn route_hash(
        &mut self,
        rows: &RowsImage,
        ids: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        route_hash::route_hash(self.geometry.expert_scale, rows, ids, scores, routes);
    }

    fn route_top_k(
        &mut self,
        rows: &RowsImage,
        bias: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        route_top_k::route_top_k(self.geometry.expert_scale, rows, bias, scores, routes);
    }

    fn experts_gate_up(
        &mut self,
        rows: &RowsImage,
        inputs: ExpertsGateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        experts_gate_up::experts_gate_up(rows, &inputs, hidden);
    }

    fn experts_down(
        &mut self,
        rows: &RowsImage,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &mut Buffer,
    ) {
        experts_down::experts_down(rows, down, hidden, routes, out);
    }

    fn gate_up(
        &mut self,
        rows: &RowsImage,
        inputs: GateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        gate_up::gate_up(rows, &inputs, hidden);
    }
}
