//! Arguments of the kernels as `kernels/prefill/prefill.h` declares them.

use super::*;

/// Matrices of one launch.
pub(super) const MAX_PIECES: usize = 8;

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            #[repr(C)]
            pub(super) struct $name {
                $(pub(super) $field: $ty,)*
            }

            impl Argument for $name {}
        )*
    };
}

arguments! {
    GemmPiece { w: u64, w_low: u64, out: u64, n_out: u32, ld_out: u32, first_tile: u32, kind: u32, }
    Gemm {
        x: u64,
        x_low: u64,
        n_rows: u32,
        ld_x: u32,
        k: u32,
        n_passes: u32,
        n_pieces: u32,
        pad: u32,
        pieces: [GemmPiece; MAX_PIECES],
    }
    SkinnyPiece { w: u64, out: u64, n_out: u32, ld_out: u32, first_block: u32, kind: u32, }
    Skinny {
        x: u64,
        x_low: u64,
        n_rows: u32,
        ld_x: u32,
        k: u32,
        n_groups: u32,
        n_pieces: u32,
        pad: u32,
        pieces: [SkinnyPiece; MAX_PIECES],
    }
    AttendArgs {
        rows: RowsView,
        q: u64,
        kv: u64,
        ring: u64,
        cache: u64,
        selected: u64,
        sinks: u64,
        out: u64,
        out_f32: u64,
        part: u64,
        part_max: u64,
        n_ring: u32,
        ratio: u32,
        top_k: u32,
        table: u32,
        n_splits: u32,
        n_rows: u32,
    }
    ExpertsArgs {
        slot: u64,
        experts: u64,
        weights: u64,
        x: u64,
        gate_up: u64,
        down: u64,
        lists: u64,
        counts: u64,
        tiles: u64,
        hidden: u64,
        part: u64,
        shared: u64,
        y: u64,
        n_rows: u32,
        tokens: u32,
        clamp: f32,
        pad: u32,
        x_f32: u64,
        x_codes: u64,
        x_scale: u64,
        hidden_sums: u64,
        hidden_scale: u64,
    }
    IndexArgs {
        rows: RowsView,
        iq: u64,
        weights: u64,
        cache: u64,
        scores: u64,
        selected: u64,
        first: u32,
        n: u32,
        stride: u32,
        cache_rows: u32,
        queries: u32,
        ld_weights: u32,
        cached: u32,
        pad: u32,
    }
    TurnArgs {
        slot: u64,
        y: u64,
        y2: u64,
        gates: u64,
        streams: u64,
        fn_: u64,
        base: u64,
        scale: u64,
        norm: u64,
        part: u64,
        x: u64,
        x_half: u64,
        x_low: u64,
        x_experts: u64,
        n_rows: u32,
        steps: u32,
    }
    RowsHalf { x: u64, x2: u64, weight: u64, out: u64, low: u64, n_rows: u32, width: u32, order: u32, clamp: f32, }
    Prepare { rows: RowsView, x: u64, out: u64, weight: u64, x_half: u64, n_rows: u32, table: u32, rounded: u32, pad: u32, }
    Expand { w: u64, out: u64, out_low: u64, n_out: u32, n_in: u32, }
    CompressArgs {
        rows: RowsView,
        window_rows: u64,
        window: u64,
        n_ring: u32,
        rounded: u32,
        n_parts: u32,
        pad: u32,
        parts: [CompressPart; 2],
    }
}

/// A compressor of a layer, its projections and where they are kept.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct CompressPart {
    pub(super) kv: u64,
    pub(super) gate: u64,
    pub(super) ape: u64,
    pub(super) norm: u64,
    pub(super) frontier: u64,
    pub(super) cache: u64,
    pub(super) width: u32,
    pub(super) dim: u32,
    pub(super) ratio: u32,
    pub(super) n_frontier: u32,
}

impl CompressPart {
    pub(super) fn new(
        compressor: &Compressor<Weight>,
        kv: &Buffer,
        gate: &Buffer,
        frontier: &Buffer,
        cache: &Buffer,
        ratio: usize,
    ) -> CompressPart {
        CompressPart {
            kv: kv.address(),
            gate: gate.address(),
            ape: compressor.ape.address(),
            norm: compressor.norm.address(),
            frontier: frontier.address(),
            cache: cache.address(),
            width: n(kv.width()),
            dim: n(compressor.row_dim),
            ratio: n(ratio),
            n_frontier: n(frontier.shape().n_rows),
        }
    }
}
