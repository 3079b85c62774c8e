//! The sublayers of a layer, as few stages as their dependencies allow: what depends on the same
//! values stands together, so that the device runs it side by side.

use ds4_model::session::CompressedCache;
use ds4_model::{
    Attend, AttentionSublayer, Backend, Compress, CompressedRows, ExpertsGateUp, ExpertsSublayer,
    GateUp, IndexScores, IndexSelect, LayerKind, RopeTable, Rotation, ScoreTile,
};

use crate::backend::{Rows, WgpuBackend};
use crate::few::Product;
use crate::few_experts::Routing;
use crate::memory::Buffer;
use crate::weight::Weight;

impl WgpuBackend {
    /// A product for a step of few rows whose input's codes are there, or for any step.
    fn product(&mut self, rows: &Rows, few: bool, weight: &Weight, x: &Buffer, out: &Buffer) {
        if few && self.takes(weight, x) {
            self.record_product(rows, &Product::of(weight, x, out));
        } else {
            self.record_any_matmul(rows, weight, weight.n_out, x, out);
        }
    }

    /// A product for any step.
    pub(crate) fn record_any_matmul(
        &mut self,
        rows: &Rows,
        weight: &Weight,
        group_out: usize,
        x: &Buffer,
        out: &Buffer,
    ) {
        if self.is_few(rows) || !self.record_gemm(rows, weight, group_out, x, out) {
            self.record_matmul(rows, weight, group_out, x, out);
        }
    }

    pub(crate) fn record_attention(
        &mut self,
        rows: &Rows,
        sublayer: AttentionSublayer<'_, Buffer, Weight>,
    ) {
        let AttentionSublayer {
            layer,
            cache,
            scratch: s,
            step,
        } = sublayer;
        let few = self.is_few(rows);
        let operands = AttentionSublayer {
            layer,
            cache,
            scratch: s,
            step,
        };
        if few && self.streams_attention(rows, &operands) {
            return self.record_attention_few(rows, &operands);
        }
        let AttentionSublayer {
            layer,
            cache,
            scratch: s,
            step,
        } = operands;
        let table = match layer.kind {
            LayerKind::Sliding => RopeTable::Plain,
            LayerKind::Csa | LayerKind::Hca => RopeTable::Compressed,
        };
        let head_dim = self.geometry.head_dim;

        // Every product of the normed input.
        if few && self.fresh != Some(s.x.memory.id) {
            self.record_quantise(rows, &s.x);
        }
        // The norm of the low-rank queries is left to the products that read them.
        let q_a = &layer.attn_q_a;
        let deferred = few
            && self.takes(q_a, &s.x)
            && q_a.n_out.is_multiple_of(32)
            && q_a.parts.len() == 1
            && self.takes(&layer.attn_q_b, &s.qr)
            && (layer.indexer.as_ref()).is_none_or(|i| self.takes(&i.attn_q_b, &s.qr));
        if deferred {
            let product = Product {
                quantised: true,
                norm: Some(&layer.attn_q_a_norm),
                ..Product::of(q_a, &s.x, &s.qr)
            };
            self.record_product(rows, &product);
        } else {
            self.product(rows, few, q_a, &s.x, &s.qr);
        }
        self.product(rows, few, &layer.attn_kv, &s.x, &s.kv);
        if let Some(c) = &layer.attn_compressor {
            let t = match layer.kind {
                LayerKind::Csa => s.csa.as_ref(),
                _ => s.hca.as_ref(),
            };
            let t = t.expect("scratch of a compressed layer");
            self.product(rows, few, &c.kv, &s.x, &t.kv);
            self.product(rows, few, &c.gate, &s.x, &t.gate);
        }
        if let Some(indexer) = &layer.indexer {
            let i = s.index.as_ref().expect("scratch of an indexer");
            self.product(rows, few, &indexer.compressor.kv, &s.x, &i.rows.kv);
            self.product(rows, few, &indexer.compressor.gate, &s.x, &i.rows.gate);
            if step.selects {
                self.product(rows, few, &indexer.proj, &s.x, &i.weights);
            }
        }

        // Queries, window rows and compressed rows.
        if !deferred {
            self.record_rms_norm(rows, &layer.attn_q_a_norm, &s.qr);
            if few && self.takes(&layer.attn_q_b, &s.qr) {
                self.record_quantise(rows, &s.qr);
            }
        }
        let queries = |b: &mut WgpuBackend, weight: &Weight, out: &Buffer| {
            if deferred {
                let product = Product {
                    normed: true,
                    ..Product::of(weight, &s.qr, out)
                };
                b.record_product(rows, &product);
            } else {
                b.product(rows, few, weight, &s.qr, out);
            }
        };
        queries(self, &layer.attn_q_b, &s.q);
        if let (Some(indexer), true) = (&layer.indexer, step.selects) {
            let i = s.index.as_ref().expect("scratch of an indexer");
            queries(self, &indexer.attn_q_b, &i.q);
        }
        // The ring is written at once where no row is lost that this step still sees.
        let spare = cache
            .window
            .shape
            .n_rows
            .saturating_sub(self.geometry.window);
        let stores = few && rows.n() as usize <= spare;
        if few {
            let ring = stores.then_some(&cache.window);
            let norm = &layer.attn_kv_a_norm;
            self.record_kv_norm_rope(rows, norm, table, step.rounded, None, &s.kv, ring);
        } else {
            self.kv_norm_rope(rows, &layer.attn_kv_a_norm, table, step.rounded, &mut s.kv);
        }
        let compressed = match (&layer.attn_compressor, &mut cache.compressed) {
            (
                Some(compressor),
                Some(CompressedCache {
                    rows: cached,
                    frontier,
                    index,
                }),
            ) => {
                let ratio = compressor.kind.ratio().expect("a compressed layer");
                let t = match layer.kind {
                    LayerKind::Csa => s.csa.as_mut(),
                    _ => s.hca.as_mut(),
                };
                let t = t.expect("scratch of a compressed layer");
                let operands = Compress {
                    compressor,
                    rounded: step.rounded,
                    kv: &t.kv,
                    gate: &mut t.gate,
                    pooled: &mut t.pooled,
                    frontier,
                    cache: cached,
                };
                self.compress(rows, operands);
                let mut selects = false;
                if let (Some(indexer), Some(index)) = (&layer.indexer, index) {
                    let i = s.index.as_mut().expect("scratch of an indexer");
                    let operands = Compress {
                        compressor: &indexer.compressor,
                        rounded: step.rounded,
                        kv: &i.rows.kv,
                        gate: &mut i.rows.gate,
                        pooled: &mut i.rows.pooled,
                        frontier: &mut index.frontier,
                        cache: &mut index.rows,
                    };
                    self.compress(rows, operands);
                    if step.selects {
                        selects = true;
                        if step.rounded {
                            self.record_iq_rope_round(rows, table, &i.q);
                        } else {
                            let dim = self.geometry.index_dim;
                            self.record_rope(rows, table, Rotation::Forward, dim, &i.q);
                        }
                        let operands = IndexSelect {
                            n_rows: step.n_rows,
                            score_rows: step.score_rows,
                            stride: step.score_stride(),
                            queries: &i.q,
                            weights: &i.weights,
                            cache: &index.rows,
                            scores: &mut i.scores,
                            selected: &mut i.selected,
                        };
                        self.record_index_select(rows, &operands, step.rounded);
                    }
                }
                match &s.index {
                    Some(i) if selects => CompressedRows::Selected {
                        cache: &*cached,
                        ratio,
                        selected: &i.selected,
                    },
                    _ => CompressedRows::All {
                        cache: &*cached,
                        ratio,
                    },
                }
            }
            _ => CompressedRows::None,
        };

        let inputs = Attend {
            q: &s.q,
            kv: &s.kv,
            ring: &cache.window,
            compressed,
            sinks: &layer.attn_sinks,
        };
        // Whether the result is rotated back, and its codes are there.
        let raw = few && self.attends_tiles(&cache.window);
        if raw || self.attends_matrices(&cache.window) {
            self.record_attend_tile(rows, &inputs, &s.o, Some(table));
        } else {
            self.record_q_norm_rope(rows, table, &s.q);
            if self.attends_tiles(&cache.window) {
                self.record_attend_tile(rows, &inputs, &s.o, None);
            } else {
                self.record_attend(rows, &inputs, &s.o);
            }
        }
        if !stores {
            self.record_store_window(rows, &s.kv, &cache.window);
        }
        if !raw {
            self.record_rope(rows, table, Rotation::Inverse, head_dim, &s.o);
        }

        // The output projection.
        let (a, b) = (&layer.attn_output_a, &layer.attn_output_b);
        let out_rank = self.geometry.out_rank;
        let grouped = few && self.takes(a, &s.o) && out_rank.is_multiple_of(32);
        if grouped {
            if !raw && self.is_integer(a) {
                self.record_quantise(rows, &s.o);
            }
            let quantised = a.parts.len() == 1;
            let product = Product {
                group_out: out_rank,
                quantised,
                ..Product::of(a, &s.o, &s.u)
            };
            self.record_product(rows, &product);
            if !quantised {
                self.record_quantise(rows, &s.u);
            }
        } else {
            self.record_any_matmul(rows, a, out_rank, &s.o, &s.u);
            if few && self.takes(b, &s.u) && self.is_integer(b) {
                self.record_quantise(rows, &s.u);
            }
        }
        self.product(rows, few, b, &s.u, &s.y);
    }

    pub(crate) fn record_index_select(
        &mut self,
        rows: &Rows,
        s: &IndexSelect<'_, Buffer>,
        rounded: bool,
    ) {
        for start in (0..s.n_rows).step_by(s.score_rows) {
            let tile = ScoreTile {
                rows: start..(start + s.score_rows).min(s.n_rows),
                stride: s.stride,
            };
            let inputs = IndexScores {
                tile: tile.clone(),
                queries: s.queries,
                weights: s.weights,
                cache: s.cache,
            };
            // Rounded queries are held by bf16.
            if rounded && self.scores_tiles(s.cache) {
                self.record_index_scores_few(rows, &inputs, s.scores);
            } else {
                self.record_index_scores(rows, &inputs, s.scores);
            }
            self.record_top_k(rows, &tile, s.scores, s.selected);
        }
    }

    pub(crate) fn record_experts(
        &mut self,
        rows: &Rows,
        sublayer: ExpertsSublayer<'_, Buffer, Weight>,
    ) {
        if self.is_few(rows) && self.streams_experts(&sublayer) {
            return self.record_experts_few(rows, &sublayer);
        }
        let (layer, s) = (sublayer.layer, sublayer.scratch);
        let few = self.is_few(rows);
        let x_id = s.x.memory.id;
        if few && self.fresh != Some(x_id) {
            self.record_quantise(rows, &s.x);
        }
        self.product(rows, few, &layer.ffn_gate_inp, &s.x, &s.router);
        let gate_up = GateUp {
            gate: &layer.ffn_gate_shexp,
            up: &layer.ffn_up_shexp,
            clamp: layer.shared_clamp,
            x: &s.x,
        };
        let shared_quantised = self.hidden(rows, few, &gate_up, &s.shared_hidden);
        self.record_router(rows, &layer.router, &s.router, &s.routes);
        let inputs = ExpertsGateUp {
            gate: &layer.ffn_gate_exps,
            up: &layer.ffn_up_exps,
            clamp: layer.expert_clamp,
            x: &s.x,
            routes: &s.routes,
        };
        let down = &layer.ffn_down_exps;
        let pairs = !few && self.tiles_pairs(rows, [inputs.gate, inputs.up, down]);
        if pairs {
            self.record_sort_pairs(rows, &s.routes);
            let (gate, up) = (inputs.gate, inputs.up);
            let limit = inputs.clamp;
            self.record_gate_up_pairs(rows, gate, up, limit, &s.x, &s.routes, &s.hidden);
            self.record_down_pairs(rows, down, &s.hidden, &s.routes, &s.y);
            self.matmul(
                rows,
                &layer.ffn_down_shexp,
                &s.shared_hidden,
                &mut s.shared_y,
            );
            self.add(rows, &s.shared_y, &mut s.y);
            return;
        }
        let routed_quantised = self.routed_hidden(rows, few, &inputs, &s.hidden);
        if few && self.takes(down, &s.hidden) {
            if !routed_quantised {
                self.record_quantise(rows, &s.hidden);
            }
            self.record_experts_down_few(rows, down, &s.hidden, &s.routes, None, &s.y);
        } else {
            self.experts_down(rows, down, &s.hidden, &s.routes, &mut s.y);
        }
        let shared_down = &layer.ffn_down_shexp;
        if few && shared_quantised && self.takes(shared_down, &s.shared_hidden) {
            self.product(rows, few, shared_down, &s.shared_hidden, &s.shared_y);
        } else {
            self.matmul(rows, shared_down, &s.shared_hidden, &mut s.shared_y);
        }
        self.add(rows, &s.shared_y, &mut s.y);
    }

    /// The shared expert's hidden layer; whether its codes are there.
    fn hidden(
        &mut self,
        rows: &Rows,
        few: bool,
        g: &GateUp<'_, Buffer, Weight>,
        hidden: &Buffer,
    ) -> bool {
        let quantised = g.gate.n_out.is_multiple_of(32);
        if few
            && self.record_gate_up_few(
                rows,
                g.gate,
                g.up,
                g.clamp,
                g.x,
                Routing::Shared,
                hidden,
                quantised,
            )
        {
            return quantised;
        }
        if few || !self.record_gate_up_dense(rows, g.gate, g.up, g.clamp, g.x, hidden) {
            self.record_gate_up(rows, g.gate, g.up, g.clamp, g.x, None, hidden);
        }
        false
    }

    /// The routed experts' hidden layer; whether its codes are there.
    fn routed_hidden(
        &mut self,
        rows: &Rows,
        few: bool,
        g: &ExpertsGateUp<'_, Buffer, Weight>,
        hidden: &Buffer,
    ) -> bool {
        let quantised = g.gate.n_out.is_multiple_of(32);
        let routing = Routing::Given(g.routes);
        if few
            && self.record_gate_up_few(rows, g.gate, g.up, g.clamp, g.x, routing, hidden, quantised)
        {
            return quantised;
        }
        self.record_gate_up(rows, g.gate, g.up, g.clamp, g.x, Some(g.routes), hidden);
        false
    }
}
