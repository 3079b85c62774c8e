//! The sublayers of a step of few rows, in stages: dispatches of a stage stand together, write buffers
//! of their own, and the first waits for all, so that they run side by side.
//!
//! | sublayer | stages |
//! |---|---|
//! | attention | products of the normed input beside the last turn's gates; queries, window row and compressed rows; (index scores; selection;) attention; its splits added; two output products |
//! | experts | router and shared hidden layer beside the gates; routed hidden layers, whose workgroups choose the experts; output of all |

use std::sync::Arc;

use ds4_model::session::IndexScratch;
use ds4_model::weights::Compressor;
use ds4_model::{
    Attend, AttentionSublayer, CompressedRows, ExpertsSublayer, IndexScores, LayerKind, RopeTable,
    ScoreTile, StepShape,
};

use crate::backend::{Rows, WgpuBackend};
use crate::few::{FewCompress, Product};
use crate::few_experts::Routing;
use crate::memory::Buffer;
use crate::weight::Weight;

/// A compressor's products.
struct Projected {
    kv: Arc<Buffer>,
    gate: Arc<Buffer>,
}

impl WgpuBackend {
    /// Whether `record_attention_few` takes this sublayer: whole blocks everywhere, weights of one
    /// part, and caches with room for the step's rows beside all that it still sees.
    pub(crate) fn streams_attention(
        &self,
        rows: &Rows,
        sublayer: &AttentionSublayer<'_, Buffer, Weight>,
    ) -> bool {
        let AttentionSublayer {
            layer,
            cache,
            scratch: s,
            ..
        } = sublayer;
        let g = &self.geometry;
        let n_rows = rows.n() as usize;
        let whole = |weight: &Weight, x: &Buffer| self.takes(weight, x) && weight.parts.len() == 1;
        let pools = |compressor: &Compressor<Weight>, n_ring: usize| {
            n_rows + compressor.kind.n_pooled() <= n_ring
                && whole(&compressor.kv, &s.x)
                && whole(&compressor.gate, &s.x)
        };
        let compresses = match (&layer.attn_compressor, &cache.compressed) {
            (None, _) => true,
            (Some(compressor), Some(c)) => {
                let indexes = match (&layer.indexer, &c.index) {
                    (Some(indexer), Some(index)) => {
                        pools(&indexer.compressor, index.frontier.shape.n_rows)
                            && whole(&indexer.proj, &s.x)
                            && whole(&indexer.attn_q_b, &s.qr)
                            && g.index_dim.is_multiple_of(32)
                            && self.scores_tiles(&index.rows)
                    }
                    _ => true,
                };
                pools(compressor, c.frontier.shape.n_rows) && indexes
            }
            (Some(_), None) => false,
        };
        compresses
            && n_rows + g.window <= cache.window.shape.n_rows
            && self.attends_tiles(&cache.window)
            && layer.attn_q_a.n_out.is_multiple_of(32)
            && g.out_rank.is_multiple_of(32)
            && whole(&layer.attn_q_a, &s.x)
            && whole(&layer.attn_kv, &s.x)
            && whole(&layer.attn_q_b, &s.qr)
            && whole(&layer.attn_output_a, &s.o)
            && self.takes(&layer.attn_output_b, &s.u)
    }

    pub(crate) fn record_attention_few(
        &mut self,
        rows: &Rows,
        sublayer: &AttentionSublayer<'_, Buffer, Weight>,
    ) {
        let AttentionSublayer {
            layer,
            cache,
            scratch: s,
            step,
        } = sublayer;
        let table = match layer.kind {
            LayerKind::Sliding => RopeTable::Plain,
            LayerKind::Csa | LayerKind::Hca => RopeTable::Compressed,
        };
        if self.fresh != Some(s.x.memory.id) {
            self.record_quantise(rows, &s.x);
            self.fence(&s.x);
        }

        // Every product of the normed input; the norm of the low-rank queries is left to the products
        // that read them.
        let qr = self.own(&s.qr);
        self.record_product(
            rows,
            &Product {
                quantised: true,
                norm: Some(&layer.attn_q_a_norm),
                ..Product::of(&layer.attn_q_a, &s.x, &qr)
            },
        );
        let raw = self.own(&s.kv);
        self.record_product(rows, &Product::of(&layer.attn_kv, &s.x, &raw));
        let t = match layer.kind {
            LayerKind::Csa => s.csa.as_ref(),
            _ => s.hca.as_ref(),
        };
        let project = |b: &mut WgpuBackend, c: &Compressor<Weight>, kv: &Buffer, gate: &Buffer| {
            let projected = Projected {
                kv: b.own(kv),
                gate: b.own(gate),
            };
            b.record_product(rows, &Product::of(&c.kv, &s.x, &projected.kv));
            b.record_product(rows, &Product::of(&c.gate, &s.x, &projected.gate));
            projected
        };
        let own = match (&layer.attn_compressor, t) {
            (Some(c), Some(t)) => Some(project(self, c, &t.kv, &t.gate)),
            _ => None,
        };
        let mut indexed = None;
        if let (Some(indexer), Some(i)) = (&layer.indexer, &s.index) {
            let rows_of = project(self, &indexer.compressor, &i.rows.kv, &i.rows.gate);
            let weights = self.own(&i.weights);
            if step.selects {
                self.record_product(rows, &Product::of(&indexer.proj, &s.x, &weights));
            }
            indexed = Some((rows_of, weights));
        }

        // Window rows, compressed rows and queries: what takes longest for its bytes comes first.
        self.fence(&qr);
        self.fence(&raw);
        for projected in own.iter().chain(indexed.iter().map(|(rows_of, _)| rows_of)) {
            self.fence(&projected.kv);
            self.fence(&projected.gate);
        }
        if let (Some(compressor), Some(projected), Some(c)) =
            (&layer.attn_compressor, &own, &cache.compressed)
        {
            let operands = FewCompress {
                compressor,
                rounded: step.rounded,
                kv: &projected.kv,
                gate: &projected.gate,
                frontier: &c.frontier,
                cache: &c.rows,
            };
            self.record_compress(rows, &operands);
            if let (Some(indexer), Some((projected, _)), Some(index)) =
                (&layer.indexer, &indexed, &c.index)
            {
                let operands = FewCompress {
                    compressor: &indexer.compressor,
                    rounded: step.rounded,
                    kv: &projected.kv,
                    gate: &projected.gate,
                    frontier: &index.frontier,
                    cache: &index.rows,
                };
                self.record_compress(rows, &operands);
            }
        }
        let kv = self.own(&s.kv);
        let norm = &layer.attn_kv_a_norm;
        let ring = Some(&cache.window);
        self.record_kv_norm_rope(rows, norm, table, step.rounded, Some(&raw), &kv, ring);
        let queries = Product {
            normed: true,
            ..Product::of(&layer.attn_q_b, &qr, &s.q)
        };
        let mut index_queries = None;
        if let (Some(indexer), Some(i), true) = (&layer.indexer, &s.index, step.selects) {
            let q = self.own(&i.q);
            let product = Product {
                index: Some((table, step.rounded)),
                weight: &indexer.attn_q_b,
                group_out: indexer.attn_q_b.n_out,
                out: &q,
                ..queries
            };
            self.record_product(rows, &product);
            index_queries = Some(q);
        }
        let q = self.own(&s.q);
        self.record_product(rows, &Product { out: &q, ..queries });

        // The rows that attention reads.
        let mut compressed = CompressedRows::None;
        if let (Some(compressor), Some(c)) = (&layer.attn_compressor, &cache.compressed) {
            let ratio = compressor.kind.ratio().expect("a compressed layer");
            compressed = CompressedRows::All {
                cache: &c.rows,
                ratio,
            };
            if let (Some(index), Some(i), Some(queries), Some((_, weights))) =
                (&c.index, &s.index, &index_queries, &indexed)
            {
                self.record_selection(rows, step, queries, weights, &index.rows, i);
                compressed = CompressedRows::Selected {
                    cache: &c.rows,
                    ratio,
                    selected: &i.selected,
                };
            }
        }
        let (q, kv): (&Buffer, &Buffer) = (&q, &kv);
        let inputs = Attend {
            q,
            kv,
            ring: &cache.window,
            compressed,
            sinks: &layer.attn_sinks,
        };
        self.record_attend_tile(rows, &inputs, &s.o, Some(table));

        // The output projection.
        let output_a = Product {
            group_out: self.geometry.out_rank,
            quantised: true,
            ..Product::of(&layer.attn_output_a, &s.o, &s.u)
        };
        self.record_product(rows, &output_a);
        self.record_product(rows, &Product::of(&layer.attn_output_b, &s.u, &s.y));
    }

    /// Scores of the visible index rows and the choice among them.
    fn record_selection(
        &mut self,
        rows: &Rows,
        step: &StepShape,
        queries: &Buffer,
        weights: &Buffer,
        cache: &Buffer,
        scratch: &IndexScratch<Buffer>,
    ) {
        let stride = step.score_stride();
        for start in (0..step.n_rows).step_by(step.score_rows) {
            let tile = ScoreTile {
                rows: start..(start + step.score_rows).min(step.n_rows),
                stride,
            };
            let inputs = IndexScores {
                tile: tile.clone(),
                queries,
                weights,
                cache,
            };
            // Rounded queries are held by bf16.
            if step.rounded {
                self.record_index_scores_few(rows, &inputs, &scratch.scores);
            } else {
                self.record_index_scores(rows, &inputs, &scratch.scores);
            }
            self.record_top_k(rows, &tile, &scratch.scores, &scratch.selected);
        }
    }

    /// Whether `record_experts_few` takes this sublayer.
    pub(crate) fn streams_experts(&self, sublayer: &ExpertsSublayer<'_, Buffer, Weight>) -> bool {
        let (layer, s) = (sublayer.layer, &sublayer.scratch);
        let pair = |gate: &Weight, up: &Weight| {
            gate.stored == up.stored
                && self.is_integer(gate) == self.is_integer(up)
                && self.takes(gate, &s.x)
                && gate.n_out.is_multiple_of(32)
        };
        let shared_down = &layer.ffn_down_shexp;
        pair(&layer.ffn_gate_shexp, &layer.ffn_up_shexp)
            && layer.ffn_gate_shexp.parts.len() == 1
            && pair(&layer.ffn_gate_exps, &layer.ffn_up_exps)
            && self.geometry.n_experts <= 1024
            && self.takes(&layer.ffn_gate_inp, &s.x)
            && self.takes(&layer.ffn_down_exps, &s.hidden)
            && self.takes(shared_down, &s.shared_hidden)
            && self.is_integer(shared_down) == self.is_integer(&layer.ffn_down_exps)
            && shared_down.parts.len() == 1
            && layer.ffn_down_exps.parts.len() == 1
    }

    pub(crate) fn record_experts_few(
        &mut self,
        rows: &Rows,
        sublayer: &ExpertsSublayer<'_, Buffer, Weight>,
    ) {
        let (layer, s) = (sublayer.layer, &sublayer.scratch);
        if self.fresh != Some(s.x.memory.id) {
            self.record_quantise(rows, &s.x);
            self.fence(&s.x);
        }
        let router = self.own(&s.router);
        self.record_product(rows, &Product::of(&layer.ffn_gate_inp, &s.x, &router));
        let shared = self.own(&s.shared_hidden);
        self.record_gate_up_few(
            rows,
            &layer.ffn_gate_shexp,
            &layer.ffn_up_shexp,
            layer.shared_clamp,
            &s.x,
            Routing::Shared,
            &shared,
            true,
        );
        // Of one or two rows the experts' workgroups find the routes; more would do so too often.
        let routing = if rows.n() <= 2 {
            Routing::Here(&layer.router, &router, &s.routes)
        } else {
            self.record_route_few(rows, &layer.router, &router, &s.routes);
            Routing::Given(&s.routes)
        };
        self.record_gate_up_few(
            rows,
            &layer.ffn_gate_exps,
            &layer.ffn_up_exps,
            layer.expert_clamp,
            &s.x,
            routing,
            &s.hidden,
            true,
        );
        self.record_experts_down_few(
            rows,
            &layer.ffn_down_exps,
            &s.hidden,
            &s.routes,
            Some((&layer.ffn_down_shexp, &shared)),
            &s.y,
        );
    }
}
