//! The kernels for many rows of the published geometry, and the sublayers they make up. Arguments are
//! those of `kernels/prefill/prefill.h`, which says how each kernel is launched.

use std::sync::Arc;

use ds4_formats::GgmlType;
use ds4_model::session::StepShape;
use ds4_model::weights::{Compressor, Layer, Router};
use ds4_model::{
    AttentionSublayer, Backend, BackendError, Entry, ExpertsSublayer, Geometry, LayerKind,
    RopeTable,
};

use crate::backend::CudaBackend;
use crate::buffer::{Buffer, Rows, RowsView};
use crate::driver::{Argument, Context, Launch, Memory, parameter as p};
use crate::error::out_of_memory;
use crate::kernels::Unit;
use crate::weight::{Layout, Weight};

mod arguments;
mod attention;
mod experts;
mod products;
mod workspace;

use arguments::*;
use products::{Input, Piece, is_f16, is_q8, to_f32};
use workspace::{Device, Places, max_tiles, n_splits, turn_steps};
pub(crate) use workspace::{Workspace, workspace_bytes};

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
/// Most rows for which the pairs of an expert are few: above, unpacking weights to halves once for 64
/// pairs takes less time than multiplying their bytes for 16.
const FEW_ROWS: usize = 256;
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
            x_experts: at.x_experts,
            n_rows: n(n_rows),
            steps: n(steps),
        };
        let unit = unit("prefill/hc.cu");
        let grid = [n_rows.div_ceil(16), 64 / steps, 1];
        self.run(&unit, "turn_mix", Launch::new(grid, 256), &[p(&args)]);
        self.run(
            &unit,
            "turn_pre",
            Launch::new([n_rows, 1, 1], 288),
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
            // In the order of the dense products, and in the one of the experts.
            for (order, out, low) in [(0, at.x, at.x_low), (1, at.x_experts, 0)] {
                self.rows_half(
                    "rows_to_half",
                    RowsHalf {
                        x: x.address(),
                        x2: 0,
                        weight: 0,
                        out,
                        low,
                        n_rows: n(n_rows),
                        width: n(N_EMBD),
                        order,
                        clamp: 0.0,
                    },
                );
            }
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
}
