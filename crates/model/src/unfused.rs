//! `Unfused`: a backend with the default bodies of its fused ops restored.

use ds4_formats::{GgmlType, Tensor};

use crate::backend::Backend;
use crate::geometry::Geometry;
use crate::operands::*;
use crate::rope::RopeTable;
use crate::rows::RowsImage;
use crate::session::SessionShape;
use crate::weights::{HyperConnection, Requirement};

/// Hands every primitive op and all memory to the inner backend, and computes
/// fused ops by their defaults.
#[derive(Debug)]
pub struct Unfused<B>(pub B);

/// Calls `$callback!` with the signature of every primitive op. Buffers an op
/// writes are marked `mut`.
macro_rules! primitive_ops {
    ($callback:ident) => {
        $callback! {
            fn embed(rows: &Self::Rows, table: &Self::Weight; streams: &mut Self::Buffer);
            fn hc_gates(rows: &Self::Rows, streams: &Self::Buffer, hc: &HyperConnection<Self::Weight>; gates: &mut Self::Buffer);
            fn hc_pre(rows: &Self::Rows, streams: &Self::Buffer, gates: &Self::Buffer; x: &mut Self::Buffer);
            fn hc_post(rows: &Self::Rows, y: &Self::Buffer, gates: &Self::Buffer; streams: &mut Self::Buffer);
            fn hc_head(rows: &Self::Rows, streams: &Self::Buffer, hc: &HyperConnection<Self::Weight>; h: &mut Self::Buffer);
            fn tap(rows: &Self::Rows, streams: &Self::Buffer, at: usize; taps: &mut Self::Buffer);
            fn choose(rows: &Self::Rows, logits: &Self::Buffer; choice: &mut Choice<Self::Buffer>);
            fn select_rows(rows: &Self::Rows, x: &Self::Buffer; out: &mut Self::Buffer);
            fn rms_norm(rows: &Self::Rows, weight: &Self::Weight; x: &mut Self::Buffer);
            fn matmul(rows: &Self::Rows, weight: &Self::Weight, x: &Self::Buffer; out: &mut Self::Buffer);
            fn matmul_grouped(rows: &Self::Rows, weight: &Self::Weight, x: &Self::Buffer; out: &mut Self::Buffer);
            fn add(rows: &Self::Rows, x: &Self::Buffer; out: &mut Self::Buffer);
            fn head_norm(rows: &Self::Rows, head_dim: usize; x: &mut Self::Buffer);
            fn rope(rows: &Self::Rows, table: RopeTable, rotation: Rotation, head_dim: usize; x: &mut Self::Buffer);
            fn kv_round(rows: &Self::Rows; x: &mut Self::Buffer);
            fn index_round(rows: &Self::Rows; x: &mut Self::Buffer);
            fn store_window(rows: &Self::Rows, kv: &Self::Buffer; window: &mut Self::Buffer);
            fn add_position_bias(rows: &Self::Rows, ape: &Self::Weight, ratio: usize; gate: &mut Self::Buffer);
            fn pool(rows: &Self::Rows, inputs: Pool<'_, Self::Buffer>; pooled: &mut Self::Buffer);
            fn store_compressed(rows: &Self::Rows, ratio: usize, pooled: &Self::Buffer; cache: &mut Self::Buffer);
            fn store_frontier(rows: &Self::Rows, kv: &Self::Buffer, gate: &Self::Buffer; frontier: &mut Self::Buffer);
            fn index_scores(rows: &Self::Rows, inputs: IndexScores<'_, Self::Buffer>; scores: &mut Self::Buffer);
            fn top_k(rows: &Self::Rows, tile: ScoreTile, scores: &Self::Buffer; selected: &mut Self::Buffer);
            fn attend(rows: &Self::Rows, inputs: Attend<'_, Self::Buffer, Self::Weight>; out: &mut Self::Buffer);
            fn router_scores(rows: &Self::Rows; scores: &mut Self::Buffer);
            fn route_hash(rows: &Self::Rows, ids: &Self::Weight, scores: &Self::Buffer; routes: &mut Routes<Self::Buffer>);
            fn route_top_k(rows: &Self::Rows, bias: &Self::Weight, scores: &Self::Buffer; routes: &mut Routes<Self::Buffer>);
            fn experts_gate_up(rows: &Self::Rows, inputs: ExpertsGateUp<'_, Self::Buffer, Self::Weight>; hidden: &mut Self::Buffer);
            fn experts_down(rows: &Self::Rows, down: &Self::Weight, hidden: &Self::Buffer, routes: &Routes<Self::Buffer>; out: &mut Self::Buffer);
            fn gate_up(rows: &Self::Rows, inputs: GateUp<'_, Self::Buffer, Self::Weight>; hidden: &mut Self::Buffer);
        }
    };
}
pub(crate) use primitive_ops;

/// The methods that are not ops, handed to the inner backend.
macro_rules! delegate_memory {
    ($inner:tt) => {
        type Buffer = B::Buffer;
        type Weight = B::Weight;
        type Rows = B::Rows;

        fn geometry(&self) -> &Geometry {
            self.$inner.geometry()
        }

        fn limits(&self) -> Limits {
            self.$inner.limits()
        }

        fn row_class(&self, n_rows: usize) -> usize {
            self.$inner.row_class(n_rows)
        }

        fn memory_bytes(&self) -> Option<u64> {
            self.$inner.memory_bytes()
        }

        fn weight_bytes(&self, need: &Requirement, ty: GgmlType) -> u64 {
            self.$inner.weight_bytes(need, ty)
        }

        fn workspace_bytes(&self, shape: &SessionShape) -> u64 {
            self.$inner.workspace_bytes(shape)
        }

        fn upload(
            &mut self,
            need: &Requirement,
            tensor: Tensor,
        ) -> Result<Self::Weight, BackendError> {
            self.$inner.upload(need, tensor)
        }

        fn defers_uploads(&self) -> bool {
            self.$inner.defers_uploads()
        }

        fn uploads_done(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), BackendError> {
            self.$inner.uploads_done(progress)
        }

        fn alloc(
            &mut self,
            element: ElementType,
            shape: Shape,
        ) -> Result<Self::Buffer, BackendError> {
            self.$inner.alloc(element, shape)
        }

        fn alloc_rows(&mut self, capacity: usize) -> Result<Self::Rows, BackendError> {
            self.$inner.alloc_rows(capacity)
        }

        fn write_rows(&mut self, rows: &mut Self::Rows, image: &RowsImage) {
            self.$inner.write_rows(rows, image);
        }

        fn write_many(
            &mut self,
            parts: &mut [WritePart<'_, Self::Buffer>],
        ) -> Result<(), BackendError> {
            self.$inner.write_many(parts)
        }

        fn read_many(
            &mut self,
            parts: &mut [ReadPart<'_, Self::Buffer>],
        ) -> Result<(), BackendError> {
            self.$inner.read_many(parts)
        }

        fn copy_rows(&mut self, buffer: &mut Self::Buffer, from: Place, to: Place, n_rows: usize) {
            self.$inner.copy_rows(buffer, from, to, n_rows);
        }

        fn begin(&mut self, key: &StepKey) -> Recording {
            self.$inner.begin(key)
        }

        fn launch(&mut self) -> Result<(), BackendError> {
            self.$inner.launch()
        }

        fn anticipate(&mut self, key: &StepKey) {
            self.$inner.anticipate(key);
        }

        fn wait(&mut self) -> Result<(), BackendError> {
            self.$inner.wait()
        }

        fn end_session(&mut self, session: u64) {
            self.$inner.end_session(session);
        }
    };
}
pub(crate) use delegate_memory;

macro_rules! delegate {
    ($(fn $op:ident(rows: $rt:ty $(, $arg:ident: $at:ty)*; $out:ident: $ot:ty);)*) => {
        $(fn $op(&mut self, rows: $rt $(, $arg: $at)*, $out: $ot) {
            self.0.$op(rows $(, $arg)*, $out);
        })*
    };
}

impl<B: Backend> Backend for Unfused<B> {
    delegate_memory!(0);
    primitive_ops!(delegate);
}
