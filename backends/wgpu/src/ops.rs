//! The host side of every op: which kernel, over which buffers, with which numbers.

use ds4_model::weights::HyperConnection;
use ds4_model::{
    Attend, Choice, CompressedRows, IndexScores, Pool, RopeTable, Rotation, Routes, ScoreTile,
};

use crate::backend::{Rows, WgpuBackend};
use crate::bound::{Bound, Held};
use crate::kernels::{FENCE_BINDING, Specialisation};
use crate::memory::Buffer;
use crate::weight::Weight;

/// Workgroups of 64 lanes for `n` of them.
fn groups(n: usize) -> u32 {
    n.div_ceil(64) as u32
}

impl WgpuBackend {
    pub(crate) fn record(
        &mut self,
        what: &Specialisation,
        bound: &[(u32, Bound<'_>)],
        words: &[u32],
        groups: [u32; 3],
    ) {
        self.last = None;
        let fences: Vec<Held> = std::mem::take(&mut self.fences)
            .into_iter()
            .filter(|fence| bound.iter().all(|(_, b)| b.id != fence.id))
            .take((self.gpu.capabilities.storage_buffers as usize).saturating_sub(bound.len() + 1))
            .collect();
        if fences.is_empty() {
            return self.recording.dispatch(
                &self.gpu,
                &mut self.bind_groups,
                what,
                bound,
                words,
                groups,
            );
        }
        let mut all = bound.to_vec();
        for (i, fence) in fences.iter().enumerate() {
            all.push((FENCE_BINDING + i as u32, fence.bound()));
        }
        self.recording.dispatch(
            &self.gpu,
            &mut self.bind_groups,
            &what.clone().fenced(fences.len()),
            &all,
            words,
            groups,
        );
    }

    pub(crate) fn record_embed(&mut self, rows: &Rows, table: &Weight, streams: &Buffer) {
        let g = &self.geometry;
        let (n_embd, n_hc) = (g.n_embd, g.n_hc);
        let what = Specialisation::of("embed").decoding("w", table.stored);
        for part in &table.parts {
            self.record(
                &what,
                &[
                    (0, rows.bind()),
                    (1, part.q()),
                    (2, part.s()),
                    (3, streams.bind()),
                ],
                &[
                    rows.n(),
                    n_embd as u32,
                    n_hc as u32,
                    part.lo as u32,
                    part.hi as u32,
                    table.strides.0,
                    table.strides.1,
                ],
                [groups(n_embd.div_ceil(8)), rows.n(), 1],
            );
        }
    }

    pub(crate) fn record_hc_gates(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        gates: &Buffer,
    ) {
        let g = self.geometry.clone();
        let part = single(&hc.fn_);
        self.record(
            &Specialisation::of("hc_gates").decoding("w", hc.fn_.stored),
            &[
                (0, rows.bind()),
                (1, part.q()),
                (2, part.s()),
                (3, hc.base.elements()),
                (4, hc.scale.elements()),
                (5, streams.bind()),
                (6, gates.bind()),
            ],
            &[
                rows.n(),
                g.n_hc as u32,
                g.n_embd as u32,
                g.n_sinkhorn as u32,
                g.rms_eps.to_bits(),
                g.hc_eps.to_bits(),
                hc.fn_.strides.0,
                hc.fn_.strides.1,
            ],
            [rows.n(), 1, 1],
        );
    }

    pub(crate) fn record_hc_pre(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        gates: &Buffer,
        x: &Buffer,
    ) {
        let (n_hc, n_embd) = (self.geometry.n_hc, self.geometry.n_embd);
        self.record(
            &Specialisation::of("hc_pre"),
            &[
                (0, rows.bind()),
                (1, streams.bind()),
                (2, gates.bind()),
                (3, x.bind()),
            ],
            &[rows.n(), n_hc as u32, n_embd as u32],
            [groups(n_embd), rows.n(), 1],
        );
    }

    pub(crate) fn record_hc_post(
        &mut self,
        rows: &Rows,
        y: &Buffer,
        gates: &Buffer,
        streams: &Buffer,
    ) {
        let (n_hc, n_embd) = (self.geometry.n_hc, self.geometry.n_embd);
        self.record(
            &Specialisation::of("hc_post"),
            &[
                (0, rows.bind()),
                (1, y.bind()),
                (2, gates.bind()),
                (3, streams.bind()),
            ],
            &[rows.n(), n_hc as u32, n_embd as u32],
            [groups(n_embd), rows.n(), 1],
        );
    }

    pub(crate) fn record_hc_head(
        &mut self,
        rows: &Rows,
        streams: &Buffer,
        hc: &HyperConnection<Weight>,
        h: &Buffer,
    ) {
        let g = self.geometry.clone();
        let part = single(&hc.fn_);
        self.record(
            &Specialisation::of("hc_head").decoding("w", hc.fn_.stored),
            &[
                (0, rows.bind()),
                (1, part.q()),
                (2, part.s()),
                (3, hc.base.elements()),
                (4, hc.scale.elements()),
                (5, streams.bind()),
                (6, h.bind()),
            ],
            &[
                rows.n(),
                g.n_hc as u32,
                g.n_embd as u32,
                g.rms_eps.to_bits(),
                g.hc_eps.to_bits(),
                hc.fn_.strides.0,
                hc.fn_.strides.1,
            ],
            [rows.n(), 1, 1],
        );
    }

    /// A kernel over every element of two activations of the same width.
    pub(crate) fn record_elementwise(
        &mut self,
        kernel: &'static str,
        rows: &Rows,
        x: &Buffer,
        out: &Buffer,
    ) {
        let width = out.width();
        self.record(
            &Specialisation::of(kernel),
            &[(0, rows.bind()), (1, x.bind()), (2, out.bind())],
            &[rows.n(), width as u32],
            [groups(width), rows.n(), 1],
        );
    }

    pub(crate) fn record_rms_norm(&mut self, rows: &Rows, weight: &Weight, x: &Buffer) {
        let eps = self.geometry.rms_eps;
        self.record(
            &Specialisation::of("rms_norm"),
            &[(0, rows.bind()), (1, weight.elements()), (2, x.bind())],
            &[rows.n(), x.width() as u32, eps.to_bits()],
            [rows.n(), 1, 1],
        );
    }

    /// `out = W x`; `group_out` rows of `W` share a block of the channels of `x`.
    pub(crate) fn record_matmul(
        &mut self,
        rows: &Rows,
        weight: &Weight,
        group_out: usize,
        x: &Buffer,
        out: &Buffer,
    ) {
        let what = Specialisation::of("matmul").decoding("w", weight.stored);
        for part in &weight.parts {
            let n_out = part.hi - part.lo;
            self.record(
                &what,
                &[
                    (0, rows.bind()),
                    (1, part.q()),
                    (2, part.s()),
                    (3, x.bind()),
                    (4, out.bind()),
                ],
                &[
                    rows.n(),
                    weight.n_in as u32,
                    n_out as u32,
                    part.lo as u32,
                    group_out as u32,
                    x.width() as u32,
                    out.width() as u32,
                    weight.strides.0,
                    weight.strides.1,
                ],
                [groups(n_out), rows.n().div_ceil(4), 1],
            );
        }
    }

    pub(crate) fn record_head_norm(&mut self, rows: &Rows, head_dim: usize, x: &Buffer) {
        let eps = self.geometry.rms_eps;
        let n_heads = (x.width() / head_dim) as u32;
        self.record(
            &Specialisation::of("head_norm"),
            &[(0, rows.bind()), (1, x.bind())],
            &[rows.n(), head_dim as u32, n_heads, eps.to_bits()],
            [n_heads, rows.n(), 1],
        );
    }

    pub(crate) fn record_rope(
        &mut self,
        rows: &Rows,
        table: RopeTable,
        rotation: Rotation,
        head_dim: usize,
        x: &Buffer,
    ) {
        let half = self.geometry.rope_dim / 2;
        let n_heads = x.width() / head_dim;
        let sign: f32 = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Inverse => -1.0,
        };
        self.record(
            &Specialisation::of("rope"),
            &[(0, rows.bind()), (1, x.bind())],
            &[
                rows.n(),
                head_dim as u32,
                n_heads as u32,
                half as u32,
                table as u32,
                sign.to_bits(),
            ],
            [groups(n_heads * half), rows.n(), 1],
        );
    }

    pub(crate) fn record_kv_round(&mut self, rows: &Rows, x: &Buffer) {
        let rope_dim = self.geometry.rope_dim;
        let plain = x.width() - rope_dim;
        let blocks = plain.div_ceil(64) + rope_dim.div_ceil(64);
        self.record(
            &Specialisation::of("kv_round"),
            &[(0, rows.bind()), (1, x.bind())],
            &[rows.n(), x.width() as u32, plain as u32],
            [groups(blocks), rows.n(), 1],
        );
    }

    pub(crate) fn record_index_round(&mut self, rows: &Rows, x: &Buffer) {
        let dim = self.geometry.index_dim;
        let n_heads = (x.width() / dim) as u32;
        let scale = (dim as f32).powf(-0.5);
        self.record(
            &Specialisation::of("index_round").with("INDEX_DIM", dim),
            &[(0, rows.bind()), (1, x.bind())],
            &[rows.n(), n_heads, scale.to_bits()],
            [n_heads, rows.n(), 1],
        );
    }

    pub(crate) fn record_store_window(&mut self, rows: &Rows, kv: &Buffer, window: &Buffer) {
        let width = window.width();
        self.record(
            &Specialisation::of("store_window").with("BF16", window.is_bf16()),
            &[(0, rows.bind()), (1, kv.bind()), (2, window.bind())],
            &[rows.n(), width as u32, window.shape.n_rows as u32],
            [groups(width / 2), rows.n(), 1],
        );
    }

    pub(crate) fn record_add_position_bias(
        &mut self,
        rows: &Rows,
        ape: &Weight,
        ratio: usize,
        gate: &Buffer,
    ) {
        self.record(
            &Specialisation::of("add_position_bias"),
            &[(0, rows.bind()), (1, ape.elements()), (2, gate.bind())],
            &[rows.n(), gate.width() as u32, ratio as u32],
            [groups(gate.width()), rows.n(), 1],
        );
    }

    pub(crate) fn record_pool(&mut self, rows: &Rows, inputs: &Pool<'_, Buffer>, pooled: &Buffer) {
        let kind = inputs.kind;
        self.record(
            &Specialisation::of("pool"),
            &[
                (0, rows.bind()),
                (1, inputs.kv.bind()),
                (2, inputs.gate.bind()),
                (3, inputs.frontier.bind()),
                (4, pooled.bind()),
            ],
            &[
                rows.n(),
                pooled.width() as u32,
                inputs.kv.width() as u32,
                kind.ratio().expect("a compressed layer") as u32,
                kind.n_pooled() as u32,
                inputs.frontier.shape.n_rows as u32,
            ],
            [groups(pooled.width()), rows.n(), 1],
        );
    }

    pub(crate) fn record_store_compressed(
        &mut self,
        rows: &Rows,
        ratio: usize,
        pooled: &Buffer,
        cache: &Buffer,
    ) {
        let width = cache.width();
        self.record(
            &Specialisation::of("store_compressed").with("BF16", cache.is_bf16()),
            &[(0, rows.bind()), (1, pooled.bind()), (2, cache.bind())],
            &[rows.n(), width as u32, ratio as u32],
            [groups(width / 2), rows.n(), 1],
        );
    }

    pub(crate) fn record_store_frontier(
        &mut self,
        rows: &Rows,
        kv: &Buffer,
        gate: &Buffer,
        frontier: &Buffer,
    ) {
        let dim = frontier.width() / 2;
        self.record(
            &Specialisation::of("store_frontier"),
            &[
                (0, rows.bind()),
                (1, kv.bind()),
                (2, gate.bind()),
                (3, frontier.bind()),
            ],
            &[rows.n(), dim as u32, frontier.shape.n_rows as u32],
            [groups(dim), rows.n(), 1],
        );
    }

    pub(crate) fn record_index_scores(
        &mut self,
        rows: &Rows,
        inputs: &IndexScores<'_, Buffer>,
        scores: &Buffer,
    ) {
        let (n_heads, dim) = (self.geometry.n_index_heads, self.geometry.index_dim);
        let scale = (dim as f32).powf(-0.5) * (n_heads as f32).powf(-0.5);
        let tile = &inputs.tile;
        self.record(
            &Specialisation::of("index_scores").with("BF16", inputs.cache.is_bf16()),
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
                n_heads as u32,
                dim as u32,
                scale.to_bits(),
                tile.stride as u32,
            ],
            [groups(tile.stride), tile.rows.len() as u32, 1],
        );
    }

    pub(crate) fn record_top_k(
        &mut self,
        rows: &Rows,
        tile: &ScoreTile,
        scores: &Buffer,
        selected: &Buffer,
    ) {
        self.record(
            &Specialisation::of("top_k"),
            &[(0, rows.bind()), (1, scores.bind()), (2, selected.bind())],
            &[
                rows.n(),
                tile.rows.start as u32,
                selected.width() as u32,
                tile.stride as u32,
            ],
            [tile.rows.len() as u32, 1, 1],
        );
    }

    pub(crate) fn record_attend(
        &mut self,
        rows: &Rows,
        inputs: &Attend<'_, Buffer, Weight>,
        out: &Buffer,
    ) {
        let (n_heads, dim) = (self.geometry.n_heads, self.geometry.head_dim);
        let ring = inputs.ring;
        let (mode, cache, ratio, selected) = compressed_operands(&inputs.compressed, ring);
        let what = Specialisation::of("attend")
            .with("HEAD_DIM", dim)
            .with("BF16", ring.is_bf16())
            .with("COMPRESSED", mode);
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
                (7, out.bind()),
            ],
            &[
                rows.n(),
                n_heads as u32,
                (dim as f32).powf(-0.5).to_bits(),
                ring.shape.n_rows as u32,
                ratio as u32,
                selected.width() as u32,
            ],
            [n_heads as u32, rows.n(), 1],
        );
    }

    pub(crate) fn record_tap(&mut self, rows: &Rows, streams: &Buffer, at: usize, taps: &Buffer) {
        let (n_hc, n_embd) = (self.geometry.n_hc, self.geometry.n_embd);
        self.record(
            &Specialisation::of("tap"),
            &[(0, rows.bind()), (1, streams.bind()), (2, taps.bind())],
            &[
                rows.n(),
                n_hc as u32,
                n_embd as u32,
                at as u32,
                taps.width() as u32,
            ],
            [groups(n_embd), rows.n(), 1],
        );
    }

    pub(crate) fn record_choose(&mut self, rows: &Rows, logits: &Buffer, choice: &Choice<Buffer>) {
        let lanes = match self.gpu.capabilities.workgroup_lanes {
            1024.. => 1024usize,
            _ => 256,
        };
        self.record(
            &Specialisation::of("choose").with("WG", lanes),
            &[
                (0, rows.bind()),
                (1, logits.bind()),
                (2, choice.ids.bind()),
                (3, choice.values.bind()),
                (4, choice.lse.bind()),
            ],
            &[rows.n(), logits.width() as u32, choice.ids.width() as u32],
            [rows.n(), 1, 1],
        );
    }

    pub(crate) fn record_router_scores(&mut self, rows: &Rows, scores: &Buffer) {
        self.record(
            &Specialisation::of("router_scores"),
            &[(0, rows.bind()), (1, scores.bind())],
            &[rows.n(), scores.width() as u32],
            [groups(scores.width()), rows.n(), 1],
        );
    }

    /// `route_hash` or `route_top_k`: `choice` is the ids or the bias.
    pub(crate) fn record_route(
        &mut self,
        kernel: &'static str,
        rows: &Rows,
        choice: &Weight,
        scores: &Buffer,
        routes: &Routes<Buffer>,
    ) {
        let scale = self.geometry.expert_scale;
        self.record(
            &Specialisation::of(kernel),
            &[
                (0, rows.bind()),
                (1, choice.elements()),
                (2, scores.bind()),
                (3, routes.experts.bind()),
                (4, routes.weights.bind()),
            ],
            &[
                rows.n(),
                scores.width() as u32,
                routes.experts.width() as u32,
                scale.to_bits(),
            ],
            [groups(rows.n() as usize), 1, 1],
        );
    }

    /// The hidden layer of the routed experts, or of the shared one.
    pub(crate) fn record_gate_up(
        &mut self,
        rows: &Rows,
        gate: &Weight,
        up: &Weight,
        clamp: f32,
        x: &Buffer,
        routes: Option<&Routes<Buffer>>,
        hidden: &Buffer,
    ) {
        let k = routes.map_or(1, |routes| routes.experts.width());
        let what = Specialisation::of("gate_up")
            .with("ROUTED", routes.is_some())
            .decoding("gate", gate.stored)
            .decoding("up", up.stored);
        let (experts, weights) = match routes {
            Some(routes) => (routes.experts.bind(), routes.weights.bind()),
            None => (x.bind(), x.bind()),
        };
        for (gate_part, up_part) in gate.parts.iter().zip(&up.parts) {
            // A matrix that is not routed is divided by rows, which would each need their own place.
            assert!(
                routes.is_some() || gate.parts.len() == 1,
                "a shared expert fits one binding"
            );
            self.record(
                &what,
                &[
                    (0, rows.bind()),
                    (1, gate_part.q()),
                    (2, gate_part.s()),
                    (3, up_part.q()),
                    (4, up_part.s()),
                    (5, x.bind()),
                    (6, hidden.bind()),
                    (7, experts),
                    (8, weights),
                ],
                &[
                    rows.n(),
                    gate.n_in as u32,
                    gate.n_out as u32,
                    k as u32,
                    gate_part.lo as u32,
                    gate_part.hi as u32,
                    clamp.to_bits(),
                    gate.strides.0,
                    gate.strides.1,
                    up.strides.0,
                    up.strides.1,
                ],
                [groups(gate.n_out), rows.n() * k as u32, 1],
            );
        }
    }

    pub(crate) fn record_experts_down(
        &mut self,
        rows: &Rows,
        down: &Weight,
        hidden: &Buffer,
        routes: &Routes<Buffer>,
        out: &Buffer,
    ) {
        let what = Specialisation::of("experts_down").decoding("w", down.stored);
        for (i, part) in down.parts.iter().enumerate() {
            self.record(
                &what,
                &[
                    (0, rows.bind()),
                    (1, part.q()),
                    (2, part.s()),
                    (3, hidden.bind()),
                    (4, routes.experts.bind()),
                    (5, out.bind()),
                ],
                &[
                    rows.n(),
                    down.n_in as u32,
                    down.n_out as u32,
                    routes.experts.width() as u32,
                    part.lo as u32,
                    part.hi as u32,
                    u32::from(i == 0),
                    down.strides.0,
                    down.strides.1,
                ],
                [groups(down.n_out), rows.n(), 1],
            );
        }
    }
}

/// The only part of a small weight.
fn single(weight: &Weight) -> &crate::weight::Part {
    let [part] = weight.parts.as_slice() else {
        panic!("a hyper-connection fits one binding");
    };
    part
}

/// How compressed rows are attended to: mode, cache, tokens a row, selection. A binding that is not
/// read is filled with one that is there.
pub(crate) fn compressed_operands<'a>(
    compressed: &CompressedRows<'a, Buffer>,
    ring: &'a Buffer,
) -> (usize, &'a Buffer, usize, &'a Buffer) {
    match compressed {
        CompressedRows::None => (0, ring, 1, ring),
        CompressedRows::All { cache, ratio } => (1, cache, *ratio, ring),
        CompressedRows::Selected {
            cache,
            ratio,
            selected,
        } => (2, cache, *ratio, selected),
    }
}
