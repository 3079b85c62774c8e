//! The kernels for many rows of the published geometry, and the sublayers they make up. Arguments are
//! those of `kernels/prefill/prefill.h`, which says how each kernel is launched.

use std::sync::Arc;

use ds4_formats::GgmlType;
use ds4_model::session::StepShape;
use ds4_model::weights::{Layer, Router};
use ds4_model::{
    AttentionSublayer, Backend, BackendError, Compress, Entry, ExpertsSublayer, Geometry,
    LayerKind, RopeTable,
};

use crate::backend::CudaBackend;
use crate::buffer::{Buffer, Rows, RowsView};
use crate::driver::{Argument, Context, Launch, Memory, parameter as p};
use crate::error::out_of_memory;
use crate::kernels::Unit;
use crate::weight::{Layout, Weight};

const N_EMBD: usize = 4096;
const N_HEADS: usize = 64;
const HEAD_DIM: usize = 512;
const Q_RANK: usize = 1024;
const N_GROUPS: usize = 8;
const OUT_RANK: usize = 1024;
const N_INDEX_HEADS: usize = 64;
const INDEX_DIM: usize = 128;
const TOP_K: usize = 512;
const N_EXPERTS: usize = 256;
const N_USED: usize = 6;
const EXPERT_DIM: usize = 2048;

/// Most rows of the products that stream the weights as they lie.
const SKINNY_ROWS: usize = 64;
/// Most rows for which the pairs of an expert are few.
const FEW_ROWS: usize = 512;
const FEW_TOKENS: usize = 16;
/// Index rows of a block of the scores.
const INDEX_TILE: usize = 512;
const INDEX_SCORES_SHARED: usize = 3 * (20_480 + 256);
const TOP_K_CACHED: usize = 16_384;
/// Blocks that the attention of a few rows is divided into.
const ATTEND_BLOCKS: usize = 264;
/// Bytes of the largest matrices as halves: queries, both halves of the output projection.
const PANEL_BYTES: usize = 2 * N_HEADS * HEAD_DIM * Q_RANK;

const STORE_F32: u32 = 0;
const STORE_F16: u32 = 2;

/// Whether the kernels here compute this geometry.
pub(crate) fn takes(g: &Geometry) -> bool {
    let found = [
        g.n_embd,
        g.n_hc,
        g.n_sinkhorn,
        g.n_heads,
        g.head_dim,
        g.rope_dim,
        g.q_rank,
        g.n_out_groups,
        g.out_rank,
        g.n_experts,
        g.n_experts_used,
        g.expert_dim,
    ];
    let flash = [
        N_EMBD, 4, 20, N_HEADS, HEAD_DIM, 64, Q_RANK, N_GROUPS, OUT_RANK, N_EXPERTS, N_USED,
        EXPERT_DIM,
    ];
    let index = [g.n_index_heads, g.index_dim, g.index_top_k];
    let has_index = g.layers.contains(&LayerKind::Csa);
    found == flash
        && (!has_index || index == [N_INDEX_HEADS, INDEX_DIM, TOP_K])
        && g.rms_eps == 1e-6
        && g.hc_eps == 1e-6
}

/// What a device decides: shared memory, stages, instructions.
#[derive(Clone, Copy, Debug)]
struct Device {
    shared_kb: usize,
    has_wgmma: bool,
}

impl Device {
    fn of(context: &Context) -> Device {
        let facts = &context.facts;
        let shared_kb = match (facts.major, facts.minor) {
            (8, 6 | 9) | (12.., _) => 99,
            (8, _) => 163,
            _ => 227,
        };
        Device {
            shared_kb,
            has_wgmma: (facts.major, facts.minor) == (9, 0),
        }
    }

    fn by_shared<T>(self, small: T, middle: T, large: T) -> T {
        match self.shared_kb {
            99 => small,
            163 => middle,
            _ => large,
        }
    }
}

/// Memory of a step beside the trait's buffers: addresses of its parts.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) n_rows: usize,
    device: Device,
    /// Owns what `at` points into.
    #[expect(dead_code, reason = "kept for its drop")]
    memory: Memory,
    at: Places,
    /// The buffer whose halves `x` holds, if they are those of its current values.
    halves_of: Option<u64>,
}

/// Offsets into the workspace, then addresses.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    x: u64,
    x_low: u64,
    qr: u64,
    qr_low: u64,
    q: u64,
    kv: u64,
    o: u64,
    u: u64,
    iq: u64,
    gate: u64,
    up: u64,
    part: u64,
    lists: u64,
    counts: u64,
    tiles: u64,
    routed_hidden: u64,
    turn: u64,
    attend: u64,
    attend_max: u64,
    panel: u64,
}

fn turn_steps(n_rows: usize) -> usize {
    if n_rows > SKINNY_ROWS { 4 } else { 1 }
}

fn n_splits(n_rows: usize) -> usize {
    (ATTEND_BLOCKS / n_rows.max(1)).clamp(1, 16)
}

fn max_tiles(n_rows: usize, tokens: usize) -> usize {
    (N_USED * n_rows).min(N_EXPERTS) + N_USED * n_rows / tokens
}

/// Offsets of the parts for steps of up to `n` rows, and how many bytes they are.
fn places(n: usize) -> (Places, usize) {
    let mut end = 0;
    let mut take = |n_bytes: usize| {
        let at = end;
        end = (at + n_bytes).next_multiple_of(256);
        at as u64
    };
    let places = Places {
        x: take(2 * n * N_EMBD),
        x_low: take(2 * n * N_EMBD),
        qr: take(2 * n * Q_RANK),
        qr_low: take(2 * n * Q_RANK),
        q: take(2 * n * N_HEADS * HEAD_DIM),
        kv: take(2 * n * HEAD_DIM),
        o: take(2 * n * N_HEADS * HEAD_DIM),
        u: take(2 * n * N_GROUPS * OUT_RANK),
        iq: take(2 * n * N_INDEX_HEADS * INDEX_DIM),
        gate: take(2 * n * EXPERT_DIM),
        up: take(4 * n * EXPERT_DIM),
        part: take(2 * n * N_USED * N_EMBD),
        lists: take(4 * N_EXPERTS * n),
        counts: take(4 * N_EXPERTS),
        tiles: take(4 * (1 + 4 * max_tiles(n, FEW_TOKENS))),
        routed_hidden: take(2 * n * N_USED * EXPERT_DIM),
        turn: take(4 * 32 * (16 * n).max(64 * n.min(SKINNY_ROWS))),
        attend: take(4 * N_HEADS * HEAD_DIM * ATTEND_BLOCKS),
        attend_max: take(4 * 2 * N_HEADS * ATTEND_BLOCKS),
        panel: take(PANEL_BYTES),
    };
    (places, end)
}

/// Bytes of the workspace for steps of up to `n_rows` rows.
pub(crate) fn workspace_bytes(n_rows: usize) -> u64 {
    places(n_rows.max(SKINNY_ROWS)).1 as u64
}

impl Workspace {
    pub(crate) fn new(context: &Arc<Context>, n_rows: usize) -> Result<Workspace, BackendError> {
        let n_rows = n_rows.max(SKINNY_ROWS);
        let (mut at, n_bytes) = places(n_rows);
        let what = || format!("the workspace of steps of {n_rows} rows");
        let memory =
            Memory::new(context, n_bytes).map_err(|e| out_of_memory(e, what(), n_bytes))?;
        for place in [
            &mut at.x,
            &mut at.x_low,
            &mut at.qr,
            &mut at.qr_low,
            &mut at.q,
            &mut at.kv,
            &mut at.o,
            &mut at.u,
            &mut at.iq,
            &mut at.gate,
            &mut at.up,
            &mut at.part,
            &mut at.lists,
            &mut at.counts,
            &mut at.tiles,
            &mut at.routed_hidden,
            &mut at.turn,
            &mut at.attend,
            &mut at.attend_max,
            &mut at.panel,
        ] {
            *place += memory.address();
        }
        Ok(Workspace {
            n_rows,
            device: Device::of(context),
            memory,
            at,
            halves_of: None,
        })
    }
}

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            #[repr(C)]
            struct $name {
                $($field: $ty,)*
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
        n_rows: u32,
        steps: u32,
    }
    RowsHalf { x: u64, x2: u64, weight: u64, out: u64, low: u64, n_rows: u32, width: u32, order: u32, clamp: f32, }
    Prepare { rows: RowsView, x: u64, out: u64, weight: u64, n_rows: u32, table: u32, rounded: u32, pad: u32, }
    Expand { w: u64, out: u64, out_low: u64, n_out: u32, n_in: u32, }
}

const MAX_PIECES: usize = 8;

/// A matrix and where its product goes.
#[derive(Clone, Copy, Debug)]
struct Piece {
    w: u64,
    out: u64,
    /// Rows of all groups.
    n_out: usize,
    ld_out: usize,
    kind: u32,
}

/// The rows that are multiplied.
#[derive(Clone, Copy, Debug)]
struct Input {
    x: u64,
    x_low: u64,
    n_rows: usize,
    ld_x: usize,
    k: usize,
    n_groups: usize,
}

fn to_f32(weight: &Weight, out: &Buffer) -> Piece {
    Piece {
        w: weight.address(),
        out: out.address(),
        n_out: weight.n_out,
        ld_out: out.width(),
        kind: STORE_F32,
    }
}

fn is_q8(weight: &Weight) -> bool {
    weight.layout == Layout::Q8
}

fn is_f16(weight: &Weight) -> bool {
    weight.layout == Layout::Raw && weight.ty == GgmlType::F16
}

/// Whether the attention sublayer's weights are in the forms that the kernels take.
fn attention_fits(layer: &Layer<Weight>) -> bool {
    let dense = [
        &layer.attn_q_a,
        &layer.attn_kv,
        &layer.attn_q_b,
        &layer.attn_output_a,
        &layer.attn_output_b,
    ];
    let halves = |c: &ds4_model::weights::Compressor<Weight>| is_f16(&c.kv) && is_f16(&c.gate);
    dense.into_iter().all(is_q8)
        && layer.attn_compressor.as_ref().is_none_or(halves)
        && layer.indexer.as_ref().is_none_or(|indexer| {
            halves(&indexer.compressor) && is_f16(&indexer.attn_q_b) && is_f16(&indexer.proj)
        })
}

fn experts_fit(layer: &Layer<Weight>) -> bool {
    let shared = [
        &layer.ffn_gate_shexp,
        &layer.ffn_up_shexp,
        &layer.ffn_down_shexp,
    ];
    shared.into_iter().all(is_q8)
        && is_f16(&layer.ffn_gate_inp)
        && layer.ffn_gate_exps.layout == Layout::Iq2Gate
        && layer.ffn_up_exps.layout == Layout::Iq2Up
        && layer.ffn_gate_exps.address() == layer.ffn_up_exps.address()
        && layer.ffn_down_exps.layout == Layout::Q2k
}

fn n(value: usize) -> u32 {
    u32::try_from(value).expect("sizes fit 32 bits")
}

fn unit(file: &'static str) -> Unit {
    Unit::new(file)
}

impl CudaBackend {
    /// Places of the workspace if it serves steps of so many rows.
    fn places(&self, n_rows: usize) -> Option<Places> {
        let workspace = self.workspace.as_ref()?;
        (n_rows <= workspace.n_rows).then_some(workspace.at)
    }

    fn shapes(&self) -> Device {
        self.workspace.as_ref().expect("a workspace").device
    }

    /// Products with Q8 matrices in halves.
    fn dense_q8(&mut self, input: Input, pieces: &[Piece], panel: u64) {
        if input.n_rows <= SKINNY_ROWS {
            return self.skinny("q8", input, pieces);
        }
        let mut expanded = Vec::with_capacity(pieces.len());
        let mut at = panel;
        for piece in pieces {
            let args = Expand {
                w: piece.w,
                out: at,
                out_low: 0,
                n_out: n(piece.n_out),
                n_in: n(input.k),
            };
            let records = piece.n_out / 16 * (input.k / 256);
            self.run(
                &unit("prefill/matrix.cu"),
                "expand_q8",
                Launch::new([records.div_ceil(8), 1, 1], 256),
                &[p(&args)],
            );
            expanded.push(Piece { w: at, ..*piece });
            at += (2 * piece.n_out * input.k) as u64;
        }
        self.gemm(input, &expanded, 1);
    }

    /// Products with f16 matrices at f32 accuracy of the rows.
    fn dense_f16(&mut self, input: Input, pieces: &[Piece]) {
        if input.n_rows <= SKINNY_ROWS {
            self.skinny("f16", input, pieces);
        } else {
            self.gemm(input, pieces, 2);
        }
    }

    fn skinny(&mut self, kind: &str, input: Input, pieces: &[Piece]) {
        let kw = (input.k / 256).min(8);
        let blocks = |piece: &Piece, t: usize| piece.n_out.div_ceil(16 * t * (8 / kw));
        let all = |t| pieces.iter().map(|piece| blocks(piece, t)).sum::<usize>();
        let t = if input.n_rows <= 32 && all(2) >= 200 {
            2
        } else {
            1
        };
        let name = match (kind, input.n_rows, t) {
            ("q8", 0..=16, 2) => "skinny_q8_16_2",
            ("q8", 0..=16, _) => "skinny_q8_16_1",
            ("q8", 17..=32, 2) => "skinny_q8_32_2",
            ("q8", 17..=32, _) => "skinny_q8_32_1",
            ("q8", ..) => "skinny_q8_64_1",
            (_, 0..=16, 2) => "skinny_f16_16_2",
            (_, 0..=16, _) => "skinny_f16_16_1",
            (_, 17..=32, 2) => "skinny_f16_32_2",
            (_, 17..=32, _) => "skinny_f16_32_1",
            _ => "skinny_f16_64_1",
        };
        let none = SkinnyPiece {
            w: 0,
            out: 0,
            n_out: 0,
            ld_out: 0,
            first_block: 0,
            kind: 0,
        };
        let mut args = Skinny {
            x: input.x,
            x_low: input.x_low,
            n_rows: n(input.n_rows),
            ld_x: n(input.ld_x),
            k: n(input.k),
            n_groups: n(input.n_groups),
            n_pieces: n(pieces.len()),
            pad: 0,
            pieces: [none; MAX_PIECES],
        };
        let mut first = 0;
        for (to, piece) in args.pieces.iter_mut().zip(pieces) {
            *to = SkinnyPiece {
                w: piece.w,
                out: piece.out,
                n_out: n(piece.n_out),
                ld_out: n(piece.ld_out),
                first_block: n(first),
                kind: piece.kind,
            };
            first += blocks(piece, t);
        }
        self.run(
            &unit("prefill/matrix.cu"),
            name,
            Launch::new([first, 1, 1], 256),
            &[p(&args)],
        );
    }

    fn gemm(&mut self, input: Input, pieces: &[Piece], n_passes: u32) {
        let device = self.shapes();
        let row_blocks = input.n_rows.div_ceil(128);
        let tiles = |bn: usize| {
            let of = |piece: &Piece| (piece.n_out / input.n_groups).div_ceil(bn);
            pieces.iter().map(of).sum::<usize>()
        };
        let blocks = |bn: usize| row_blocks * tiles(bn) * input.n_groups;
        let bn = [256, 128]
            .into_iter()
            .find(|bn| blocks(*bn) >= 120)
            .unwrap_or(64);
        let (name, stages) = match (bn, device.has_wgmma) {
            (256, true) => ("gemm_wgmma_256", 4),
            (128, true) => ("gemm_wgmma_128", 6),
            (256, false) => ("gemm_256", device.by_shared(2, 3, 4)),
            (128, false) => ("gemm_128", device.by_shared(3, 4, 5)),
            _ => ("gemm_64", device.by_shared(2, 3, 4)),
        };
        let none = GemmPiece {
            w: 0,
            w_low: 0,
            out: 0,
            n_out: 0,
            ld_out: 0,
            first_tile: 0,
            kind: 0,
        };
        let mut args = Gemm {
            x: input.x,
            x_low: input.x_low,
            n_rows: n(input.n_rows),
            ld_x: n(input.ld_x),
            k: n(input.k),
            n_passes,
            n_pieces: n(pieces.len()),
            pad: 0,
            pieces: [none; MAX_PIECES],
        };
        let mut first = 0;
        for (to, piece) in args.pieces.iter_mut().zip(pieces) {
            let n_out = piece.n_out / input.n_groups;
            *to = GemmPiece {
                w: piece.w,
                w_low: 0,
                out: piece.out,
                n_out: n(n_out),
                ld_out: n(piece.ld_out),
                first_tile: n(first),
                kind: piece.kind,
            };
            first += n_out.div_ceil(bn);
        }
        self.run(
            &unit("prefill/gemm.cu"),
            name,
            Launch::new([row_blocks, first, input.n_groups], 256).shared(stages * (128 + bn) * 128),
            &[p(&args)],
        );
    }

    fn rows_half(&mut self, name: &'static str, args: RowsHalf) {
        let grid = match name {
            "norm_half" => args.n_rows as usize,
            _ => (args.n_rows as usize * args.width as usize).div_ceil(2048),
        };
        self.run(
            &unit("prefill/rows.cu"),
            name,
            Launch::new([grid, 1, 1], 256),
            &[p(&args)],
        );
    }

    /// `hc_post` when there is a `y`, then `hc_pre_norm`; `None` when the kernels do not take them.
    pub(crate) fn fast_turn(
        &mut self,
        rows: &Rows,
        y: Option<&Buffer>,
        entry: Entry<'_, Weight>,
        gates: &Buffer,
        streams: &Buffer,
        x: &Buffer,
    ) -> Option<()> {
        let n_rows = rows.n_rows();
        let at = self.places(n_rows)?;
        if !self.options.fast.turns || entry.hc.fn_.layout != Layout::Hc {
            return None;
        }
        let steps = turn_steps(n_rows);
        let args = TurnArgs {
            slot: rows.view().slot(),
            y: y.map_or(0, Buffer::address),
            y2: 0,
            gates: gates.address(),
            streams: streams.address(),
            fn_: entry.hc.fn_.address(),
            base: entry.hc.base.address(),
            scale: entry.hc.scale.address(),
            norm: entry.norm.address(),
            part: at.turn,
            x: x.address(),
            x_half: at.x,
            x_low: at.x_low,
            n_rows: n(n_rows),
            steps: n(steps),
        };
        let unit = unit("prefill/hc.cu");
        let grid = [n_rows.div_ceil(16), 64 / steps, 1];
        self.run(&unit, "turn_mix", Launch::new(grid, 256), &[p(&args)]);
        self.run(
            &unit,
            "turn_pre",
            Launch::new([n_rows, 1, 1], 256),
            &[p(&args)],
        );
        self.workspace.as_mut()?.halves_of = Some(x.address());
        Some(())
    }

    /// Says that a buffer is written by a kernel that makes no halves of it.
    pub(crate) fn forget_halves(&mut self) {
        if let Some(workspace) = &mut self.workspace {
            workspace.halves_of = None;
        }
    }

    /// Halves of a sublayer's input, made unless the turn before it left them.
    fn input_halves(&mut self, x: &Buffer, n_rows: usize, at: &Places) -> Input {
        let workspace = self.workspace.as_mut().expect("a workspace");
        if workspace.halves_of != Some(x.address()) {
            self.rows_half(
                "rows_to_half",
                RowsHalf {
                    x: x.address(),
                    x2: 0,
                    weight: 0,
                    out: at.x,
                    low: at.x_low,
                    n_rows: n(n_rows),
                    width: n(N_EMBD),
                    order: 0,
                    clamp: 0.0,
                },
            );
        }
        self.forget_halves();
        Input {
            x: at.x,
            x_low: at.x_low,
            n_rows,
            ld_x: N_EMBD,
            k: N_EMBD,
            n_groups: 1,
        }
    }

    /// A product of a Q8 matrix with rows of f32, for outputs: in turns of as many rows as the
    /// products take that stream the weights.
    pub(crate) fn fast_matmul(
        &mut self,
        rows: &Rows,
        weight: &Weight,
        x: &Buffer,
        out: &Buffer,
    ) -> Option<()> {
        let (n_rows, width) = (rows.n_rows(), x.width());
        let at = self.places(n_rows)?;
        let is_streamed = width == N_EMBD && weight.n_in == N_EMBD && weight.n_out % 128 == 0;
        if !is_streamed || !is_q8(weight) {
            return None;
        }
        self.forget_halves();
        let mut input = self.input_halves(x, n_rows, &at);
        self.forget_halves();
        for start in (0..n_rows).step_by(SKINNY_ROWS) {
            input.n_rows = SKINNY_ROWS.min(n_rows - start);
            input.x = at.x + (2 * start * width) as u64;
            let mut piece = to_f32(weight, out);
            piece.out += (4 * start * out.width()) as u64;
            self.skinny("q8", input, &[piece]);
        }
        Some(())
    }

    /// The attention sublayer; `None` when the kernels do not take it.
    pub(crate) fn fast_attention(
        &mut self,
        rows: &Rows,
        sublayer: &mut AttentionSublayer<'_, Buffer, Weight>,
    ) -> Option<()> {
        let AttentionSublayer {
            layer,
            cache,
            scratch: s,
            step,
        } = sublayer;
        let n_rows = rows.n_rows();
        let at = self.places(n_rows)?;
        if !self.options.fast.attention || !attention_fits(layer) || !step.rounded {
            return None;
        }
        let table = match layer.kind {
            LayerKind::Sliding => RopeTable::Plain,
            LayerKind::Csa | LayerKind::Hca => RopeTable::Compressed,
        } as u32;
        let input = self.input_halves(&s.x, n_rows, &at);
        let pieces = [
            to_f32(&layer.attn_q_a, &s.qr),
            to_f32(&layer.attn_kv, &s.kv),
        ];
        self.dense_q8(input, &pieces, at.panel);
        let mut pieces = Vec::new();
        if let Some(c) = &layer.attn_compressor {
            let t = if layer.kind == LayerKind::Csa {
                &s.csa
            } else {
                &s.hca
            };
            let t = t.as_ref().expect("scratch of a compressed layer");
            pieces.extend([to_f32(&c.kv, &t.kv), to_f32(&c.gate, &t.gate)]);
        }
        if let (Some(indexer), Some(i)) = (&layer.indexer, &s.index) {
            let c = &indexer.compressor;
            pieces.extend([
                to_f32(&c.kv, &i.rows.kv),
                to_f32(&c.gate, &i.rows.gate),
                to_f32(&indexer.proj, &i.weights),
            ]);
        }
        if !pieces.is_empty() {
            self.dense_f16(input, &pieces);
        }

        self.rows_half(
            "norm_half",
            RowsHalf {
                x: s.qr.address(),
                x2: 0,
                weight: layer.attn_q_a_norm.address(),
                out: at.qr,
                low: at.qr_low,
                n_rows: n(n_rows),
                width: n(Q_RANK),
                order: 0,
                clamp: 0.0,
            },
        );
        let qr = Input {
            x: at.qr,
            x_low: at.qr_low,
            ld_x: Q_RANK,
            k: Q_RANK,
            ..input
        };
        self.dense_q8(qr, &[to_f32(&layer.attn_q_b, &s.q)], at.panel);
        let prepare = |x: u64, out: u64, weight: u64| Prepare {
            rows: rows.view(),
            x,
            out,
            weight,
            n_rows: n(n_rows),
            table,
            rounded: 1,
            pad: 0,
        };
        let file = unit("prefill/rows.cu");
        let heads = Launch::new([n_rows, 8, 1], 256);
        let args = prepare(s.q.address(), at.q, 0);
        self.run(&file, "q_prepare", heads, &[p(&args)]);
        let args = prepare(s.kv.address(), at.kv, layer.attn_kv_a_norm.address());
        let by_eight = Launch::new([n_rows.div_ceil(8), 1, 1], 256);
        self.run(&file, "kv_prepare", by_eight, &[p(&args)]);

        // Compressed rows that this step completes, then the query's choice.
        let mut selected = 0;
        let mut compressed = (0, 0);
        if let (Some(compressor), Some(c)) = (&layer.attn_compressor, &mut cache.compressed) {
            let t = match layer.kind {
                LayerKind::Csa => s.csa.as_mut(),
                _ => s.hca.as_mut(),
            };
            let t = t.expect("scratch of a compressed layer");
            compressed = (
                c.rows.address(),
                compressor.kind.ratio().expect("compressed"),
            );
            let operands = Compress {
                compressor,
                rounded: true,
                kv: &t.kv,
                gate: &mut t.gate,
                pooled: &mut t.pooled,
                frontier: &mut c.frontier,
                cache: &mut c.rows,
            };
            self.compress(rows, operands);
            if let (Some(indexer), Some(index)) = (&layer.indexer, &mut c.index) {
                let i = s.index.as_mut().expect("scratch of an indexer");
                let operands = Compress {
                    compressor: &indexer.compressor,
                    rounded: true,
                    kv: &i.rows.kv,
                    gate: &mut i.rows.gate,
                    pooled: &mut i.rows.pooled,
                    frontier: &mut index.frontier,
                    cache: &mut index.rows,
                };
                self.compress(rows, operands);
                if step.selects {
                    self.dense_f16(qr, &[to_f32(&indexer.attn_q_b, &i.q)]);
                    let args = prepare(i.q.address(), at.iq, 0);
                    self.run(&file, "iq_prepare", heads, &[p(&args)]);
                    self.fast_select(rows, step, &at, &index.rows, i);
                    selected = i.selected.address();
                }
            }
        }

        let splits = if n_rows <= SKINNY_ROWS {
            n_splits(n_rows)
        } else {
            1
        };
        let args = AttendArgs {
            rows: rows.view(),
            q: at.q,
            kv: at.kv,
            ring: cache.window.address(),
            cache: compressed.0,
            selected,
            sinks: layer.attn_sinks.address(),
            out: at.o,
            out_f32: 0,
            part: at.attend,
            part_max: at.attend_max,
            n_ring: n(cache.window.shape().n_rows),
            ratio: n(compressed.1),
            top_k: n(TOP_K),
            table,
            n_splits: n(splits),
            n_rows: n(n_rows),
        };
        let bn = self.shapes().by_shared(16, 32, 64);
        let shared = 65_536 + 2 * bn * 1024 + 64 * (bn * 2 + 16) + 1024;
        let file = unit("prefill/attend.cu");
        let launch = Launch::new([n_rows, splits, 1], 256).shared(shared);
        self.run(&file, "attend", launch, &[p(&args)]);
        if splits > 1 {
            let launch = Launch::new([n_rows, 8, 1], 256);
            self.run(&file, "attend_combine", launch, &[p(&args)]);
        }
        self.store_window(rows, &s.kv, &mut cache.window);

        let o = Input {
            x: at.o,
            x_low: 0,
            ld_x: N_HEADS * HEAD_DIM,
            k: N_HEADS * HEAD_DIM / N_GROUPS,
            n_groups: N_GROUPS,
            ..input
        };
        let width = N_GROUPS * OUT_RANK;
        let out_a = Piece {
            w: layer.attn_output_a.address(),
            out: at.u,
            n_out: width,
            ld_out: width,
            kind: STORE_F16,
        };
        self.dense_q8(o, &[out_a], at.panel);
        let u = Input {
            x: at.u,
            ld_x: width,
            k: width,
            n_groups: 1,
            ..o
        };
        self.dense_q8(u, &[to_f32(&layer.attn_output_b, &s.y)], at.panel);
        Some(())
    }

    /// The index rows that each query attends to.
    fn fast_select(
        &mut self,
        rows: &Rows,
        step: &StepShape,
        at: &Places,
        cache: &Buffer,
        i: &ds4_model::session::IndexScratch<Buffer>,
    ) {
        let stride = step.score_stride();
        let n_rows = rows.n_rows();
        let queries = if n_rows <= SKINNY_ROWS { 1 } else { 32 };
        let cached = stride.next_multiple_of(4).min(TOP_K_CACHED);
        for first in (0..n_rows).step_by(step.score_rows) {
            let count = step.score_rows.min(n_rows - first);
            let args = IndexArgs {
                rows: rows.view(),
                iq: at.iq,
                weights: i.weights.address(),
                cache: cache.address(),
                scores: i.scores.address(),
                selected: i.selected.address(),
                first: n(first),
                n: n(count),
                stride: n(stride),
                cache_rows: n(cache.shape().n_rows),
                queries: n(queries),
                ld_weights: n(N_INDEX_HEADS),
                cached: n(cached),
                pad: 0,
            };
            let file = unit("prefill/index.cu");
            let grid = [stride.div_ceil(INDEX_TILE), count.div_ceil(queries), 1];
            let launch = Launch::new(grid, 256).shared(INDEX_SCORES_SHARED);
            self.run(&file, "index_scores", launch, &[p(&args)]);
            let launch = Launch::new([count, 1, 1], 512).shared(8192 + 4 * cached);
            self.run(&file, "index_top_k", launch, &[p(&args)]);
        }
    }

    /// The experts sublayer; `None` when the kernels do not take it.
    pub(crate) fn fast_experts(
        &mut self,
        rows: &Rows,
        sublayer: &mut ExpertsSublayer<'_, Buffer, Weight>,
    ) -> Option<()> {
        let (layer, s) = (sublayer.layer, &mut *sublayer.scratch);
        let n_rows = rows.n_rows();
        let at = self.places(n_rows)?;
        if !self.options.fast.experts || !experts_fit(layer) {
            return None;
        }
        let input = self.input_halves(&s.x, n_rows, &at);
        self.dense_f16(input, &[to_f32(&layer.ffn_gate_inp, &s.router)]);
        self.router_scores(rows, &mut s.router);
        match &layer.router {
            Router::Hash(ids) => self.route_hash(rows, ids, &s.router, &mut s.routes),
            Router::TopK(bias) => self.route_top_k(rows, bias, &s.router, &mut s.routes),
        }

        // The shared expert.
        let mut up = to_f32(&layer.ffn_up_shexp, &s.shared_hidden);
        up.out = at.up;
        let pieces = [to_f32(&layer.ffn_gate_shexp, &s.shared_hidden), up];
        self.dense_q8(input, &pieces, at.panel);
        self.rows_half(
            "gate_half",
            RowsHalf {
                x: s.shared_hidden.address(),
                x2: at.up,
                weight: 0,
                out: at.gate,
                low: 0,
                n_rows: n(n_rows),
                width: n(EXPERT_DIM),
                order: 0,
                clamp: layer.shared_clamp,
            },
        );
        let hidden = Input {
            x: at.gate,
            x_low: 0,
            ld_x: EXPERT_DIM,
            k: EXPERT_DIM,
            ..input
        };
        self.dense_q8(
            hidden,
            &[to_f32(&layer.ffn_down_shexp, &s.shared_y)],
            at.panel,
        );

        // The routed ones.
        let device = self.shapes();
        let is_few = n_rows <= FEW_ROWS;
        let tokens = if is_few {
            FEW_TOKENS
        } else {
            device.by_shared(32, 64, 64)
        };
        let warps = device.by_shared(8, 16, 16);
        let stages = if is_few { device.by_shared(2, 3, 4) } else { 2 };
        let args = ExpertsArgs {
            slot: rows.view().slot(),
            experts: s.routes.experts.address(),
            weights: s.routes.weights.address(),
            x: at.x,
            gate_up: layer.ffn_gate_exps.table(),
            down: layer.ffn_down_exps.table(),
            lists: at.lists,
            counts: at.counts,
            tiles: at.tiles,
            hidden: at.routed_hidden,
            part: at.part,
            shared: s.shared_y.address(),
            y: s.y.address(),
            n_rows: n(n_rows),
            tokens: n(tokens),
            clamp: layer.expert_clamp,
            pad: 0,
        };
        let file = unit("prefill/experts.cu");
        let parameters = [p(&args)];
        self.run(
            &file,
            "experts_group",
            Launch::new([N_EXPERTS, 1, 1], 256),
            &parameters,
        );
        self.run(
            &file,
            "experts_tiles",
            Launch::new([1, 1, 1], 256),
            &parameters,
        );
        let tiles = max_tiles(n_rows, tokens);
        let threads = n(32 * warps);
        let shared = 1024 + 8192 + stages * (warps / 2 * 4480 + tokens * 576);
        let grid = [EXPERT_DIM / (16 * warps), tiles, 1];
        let name = if is_few {
            "experts_gate_up_few"
        } else {
            "experts_gate_up_many"
        };
        self.run(
            &file,
            name,
            Launch::new(grid, threads).shared(shared),
            &parameters,
        );
        let shared = 1024 + stages * (warps * 2688 + tokens * 544);
        let grid = [N_EMBD / (32 * warps), tiles, 1];
        let name = if is_few {
            "experts_down_few"
        } else {
            "experts_down_many"
        };
        self.run(
            &file,
            name,
            Launch::new(grid, threads).shared(shared),
            &parameters,
        );
        self.run(
            &file,
            "experts_sum",
            Launch::new([n_rows, 1, 1], 256),
            &parameters,
        );
        Some(())
    }
}
