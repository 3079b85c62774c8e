//! Plain kernels: launches of those that take more than a line, for every geometry, weight type and
//! number of rows.

use ds4_model::weights::HyperConnection;
use ds4_model::{
    Attend, Choice, CompressedRows, ExpertsGateUp, GateUp, IndexScores, LayerKind, Pool, Routes,
    ScoreTile,
};

use crate::backend::{CudaBackend, SHARES};
use crate::buffer::{Buffer, CacheView, Rows};
use crate::driver::{Launch, parameter as p};
use crate::kernels::Unit;
use crate::weight::{Layout, Weight};

/// Threads of most plain kernels.
pub(crate) const THREADS: u32 = 256;
/// Outputs of a block of a plain product.
const BLOCK_OUTPUTS: usize = 8;
/// Rows of a block of a plain product.
const BLOCK_ROWS: usize = 8;
/// Most blocks that share the index rows of one row.
const SCORE_BLOCKS: usize = 128;
/// Attended rows of a round of the plain attention.
const ATTEND_ROUND: usize = 256;

pub(crate) fn unit(file: &'static str) -> Unit {
    Unit::new(file)
}

pub(crate) fn typed(file: &'static str, weight: &Weight) -> Unit {
    Unit::new(file).define("TYPE", weight.code())
}

pub(crate) fn n(value: usize) -> u32 {
    u32::try_from(value).expect("sizes fit 32 bits")
}

pub(crate) fn each_row(rows: &Rows) -> Launch {
    Launch::new([rows.n_rows(), 1, 1], THREADS)
}

impl CudaBackend {
    /// A product with the first `n_rows` rows of `x`, into `out` at an address.
    pub(crate) fn product(
        &mut self,
        weight: &Weight,
        group_rank: usize,
        x: &Buffer,
        out: (u64, usize),
        n_rows: usize,
    ) {
        let grid = [
            weight.n_out.div_ceil(BLOCK_OUTPUTS),
            n_rows.div_ceil(BLOCK_ROWS),
            1,
        ];
        self.run(
            &typed("matmul.cu", weight),
            "matmul",
            Launch::new(grid, THREADS),
            &[
                p(&weight.matrix()),
                p(&n(group_rank)),
                p(&x.address()),
                p(&n(x.width())),
                p(&out.0),
                p(&n(out.1)),
                p(&n(n_rows)),
            ],
        );
    }
}

/// The power -1/2 as the reference takes it.
pub(crate) fn inverse_root(n: usize) -> f32 {
    (n as f32).powf(-0.5)
}

impl CudaBackend {
    pub(crate) fn plain_hc_gates(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &mut Buffer,
    ) {
        let out = (gates.address(), gates.width());
        self.product(&hc.fn_, 0, streams, out, rows.n_rows());
        let g = &self.geometry;
        let (n_hc, n_sinkhorn, rms_eps, hc_eps) = (n(g.n_hc), n(g.n_sinkhorn), g.rms_eps, g.hc_eps);
        self.run(
            &unit("streams.cu"),
            "hc_gates",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&streams.address()),
                p(&n(streams.width())),
                p(&hc.base.address()),
                p(&hc.scale.address()),
                p(&n_hc),
                p(&n_sinkhorn),
                p(&rms_eps),
                p(&hc_eps),
                p(&gates.address()),
            ],
        );
    }

    pub(crate) fn plain_hc_head(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        h: &mut Buffer,
    ) {
        if hc.fn_.layout == Layout::Hc && self.geometry.n_hc == 4 {
            let (rms_eps, hc_eps) = (self.geometry.rms_eps, self.geometry.hc_eps);
            return self.run(
                &unit("streams.cu"),
                "hc_head_4",
                Launch::new([rows.n_rows(), 1, 1], 512),
                &[
                    p(&rows.view()),
                    p(&streams.address()),
                    p(&hc.fn_.address()),
                    p(&hc.base.address()),
                    p(&hc.scale.address()),
                    p(&n(h.width())),
                    p(&rms_eps),
                    p(&hc_eps),
                    p(&h.address()),
                ],
            );
        }
        let products = self
            .head_products
            .as_ref()
            .expect("allocated with the rows")
            .address();
        let g = &self.geometry;
        let (n_hc, rms_eps, hc_eps) = (g.n_hc, g.rms_eps, g.hc_eps);
        self.product(&hc.fn_, 0, streams, (products, n_hc), rows.n_rows());
        self.run(
            &unit("streams.cu"),
            "hc_head",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&streams.address()),
                p(&products),
                p(&hc.base.address()),
                p(&hc.scale.address()),
                p(&n(n_hc)),
                p(&n(h.width())),
                p(&rms_eps),
                p(&hc_eps),
                p(&h.address()),
            ],
        );
    }

    pub(crate) fn plain_choose(
        &mut self,
        rows: &Rows,
        logits: &Buffer,
        choice: &mut Choice<Buffer>,
    ) {
        let (n_rows, k) = (rows.n_rows(), n(choice.ids.width()));
        let Some(shares) = self.shares(n_rows) else {
            return;
        };
        self.run(
            &unit("index.cu"),
            "choose_shares",
            Launch::new([SHARES, n_rows, 1], 512),
            &[
                p(&rows.view()),
                p(&logits.address()),
                p(&n(logits.width())),
                p(&k),
                p(&shares.sums),
                p(&shares.values),
                p(&shares.ids),
            ],
        );
        self.run(
            &unit("index.cu"),
            "choose",
            Launch::new([n_rows, 1, 1], 1024),
            &[
                p(&rows.view()),
                p(&shares.sums),
                p(&shares.values),
                p(&shares.ids),
                p(&n(SHARES)),
                p(&k),
                p(&choice.ids.address()),
                p(&choice.values.address()),
                p(&choice.lse.address()),
            ],
        );
        self.land([&choice.ids, &choice.values, &choice.lse], n_rows);
    }

    pub(crate) fn plain_attend(
        &mut self,
        rows: &Rows,
        inputs: Attend<'_, Buffer, Weight>,
        out: &mut Buffer,
    ) {
        let (cache, ratio, selected, n_selected) = match inputs.compressed {
            CompressedRows::None => (CacheView::default(), 0, 0, 0),
            CompressedRows::All { cache, ratio } => (cache.cache(), ratio, 0, 0),
            CompressedRows::Selected {
                cache,
                ratio,
                selected,
            } => (cache.cache(), ratio, selected.address(), selected.width()),
        };
        let dim = self.geometry.head_dim;
        let shared = 4 * (2 * dim + ATTEND_ROUND);
        self.run(
            &unit("attend.cu"),
            "attend",
            Launch::new([self.geometry.n_heads, rows.n_rows(), 1], THREADS).shared(shared),
            &[
                p(&rows.view()),
                p(&inputs.q.address()),
                p(&inputs.kv.address()),
                p(&inputs.ring.cache()),
                p(&cache),
                p(&n(ratio)),
                p(&selected),
                p(&n(n_selected)),
                p(&inputs.sinks.address()),
                p(&inverse_root(dim)),
                p(&out.address()),
            ],
        );
    }

    pub(crate) fn plain_index_scores(
        &mut self,
        rows: &Rows,
        inputs: IndexScores<'_, Buffer>,
        scores: &mut Buffer,
    ) {
        let ScoreTile {
            rows: range,
            stride,
        } = &inputs.tile;
        let (heads, dim) = (self.geometry.n_index_heads, self.geometry.index_dim);
        let scale = inverse_root(dim) * inverse_root(heads);
        let blocks = stride.div_ceil(128).clamp(1, SCORE_BLOCKS);
        self.run(
            &unit("index.cu"),
            "index_scores",
            Launch::new([blocks, range.len(), 1], 128),
            &[
                p(&rows.view()),
                p(&n(range.start)),
                p(&inputs.queries.address()),
                p(&inputs.weights.address()),
                p(&n(heads)),
                p(&scale),
                p(&inputs.cache.cache()),
                p(&scores.address()),
                p(&n(*stride)),
            ],
        );
    }

    pub(crate) fn plain_experts_gate_up(
        &mut self,
        rows: &Rows,
        inputs: ExpertsGateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        let ExpertsGateUp { gate, up, .. } = inputs;
        let n_used = inputs.routes.experts.width();
        self.run(
            &typed("experts_gate_up.cu", gate).define("TYPE_UP", up.code()),
            "experts_gate_up",
            Launch::new(
                [gate.n_out.div_ceil(BLOCK_OUTPUTS), n_used, rows.n_rows()],
                THREADS,
            ),
            &[
                p(&rows.view()),
                p(&gate.matrix()),
                p(&up.matrix()),
                p(&gate.table()),
                p(&up.table()),
                p(&inputs.clamp),
                p(&inputs.x.address()),
                p(&inputs.routes.experts.address()),
                p(&inputs.routes.weights.address()),
                p(&hidden.address()),
            ],
        );
    }

    pub(crate) fn plain_experts_down(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &mut Buffer,
    ) {
        self.run(
            &typed("experts_down.cu", down),
            "experts_down",
            Launch::new(
                [down.n_out.div_ceil(BLOCK_OUTPUTS), rows.n_rows(), 1],
                THREADS,
            ),
            &[
                p(&rows.view()),
                p(&down.matrix()),
                p(&down.table()),
                p(&n(routes.experts.width())),
                p(&hidden.address()),
                p(&routes.experts.address()),
                p(&out.address()),
            ],
        );
    }

    pub(crate) fn plain_gate_up(
        &mut self,
        rows: &Rows,
        inputs: GateUp<'_, Buffer, Weight>,
        hidden: &mut Buffer,
    ) {
        let GateUp { gate, up, .. } = inputs;
        self.run(
            &typed("experts_gate_up.cu", gate).define("TYPE_UP", up.code()),
            "experts_gate_up",
            Launch::new(
                [gate.n_out.div_ceil(BLOCK_OUTPUTS), 1, rows.n_rows()],
                THREADS,
            ),
            &[
                p(&rows.view()),
                p(&gate.matrix()),
                p(&up.matrix()),
                p(&0u64),
                p(&0u64),
                p(&inputs.clamp),
                p(&inputs.x.address()),
                p(&0u64),
                p(&0u64),
                p(&hidden.address()),
            ],
        );
    }

    pub(crate) fn plain_pool(
        &mut self,
        rows: &Rows,
        inputs: Pool<'_, Buffer>,
        pooled: &mut Buffer,
    ) {
        let ratio = inputs.kind.ratio().expect("a compressed layer");
        self.run(
            &unit("caches.cu"),
            "pool",
            each_row(rows),
            &[
                p(&rows.view()),
                p(&n(ratio)),
                p(&n(inputs.kind.n_pooled())),
                p(&u32::from(inputs.kind == LayerKind::Csa)),
                p(&inputs.kv.address()),
                p(&inputs.gate.address()),
                p(&n(inputs.kv.width())),
                p(&inputs.frontier.cache()),
                p(&pooled.address()),
                p(&n(pooled.width())),
            ],
        );
    }

    pub(crate) fn plain_route_hash(
        &mut self,
        rows: &Rows,
        ids: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        let scale = self.geometry.expert_scale;
        self.run(
            &unit("routes.cu"),
            "route_hash",
            Launch::new([rows.n_rows(), 1, 1], 32),
            &[
                p(&rows.view()),
                p(&ids.address()),
                p(&scores.address()),
                p(&n(scores.width())),
                p(&n(routes.experts.width())),
                p(&scale),
                p(&routes.experts.address()),
                p(&routes.weights.address()),
            ],
        );
    }

    pub(crate) fn plain_route_top_k(
        &mut self,
        rows: &Rows,
        bias: &Weight,
        scores: &Buffer,
        routes: &mut Routes<Buffer>,
    ) {
        let scale = self.geometry.expert_scale;
        self.run(
            &unit("routes.cu"),
            "route_top_k",
            Launch::new([rows.n_rows(), 1, 1], 32),
            &[
                p(&rows.view()),
                p(&bias.address()),
                p(&scores.address()),
                p(&n(scores.width())),
                p(&n(routes.experts.width())),
                p(&scale),
                p(&routes.experts.address()),
                p(&routes.weights.address()),
            ],
        );
    }
}
