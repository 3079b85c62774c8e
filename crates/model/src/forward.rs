//! The forward pass: one straight line over a [`Backend`], for any rows.

use crate::backend::Backend;
use crate::geometry::LayerKind;
use crate::operands::{
    Attend, AttentionSublayer, Compress, CompressedRows, Entry, ExpertsGateUp, ExpertsSublayer,
    GateUp, IndexSelect, Rotation, Turn,
};
use crate::rope::RopeTable;
use crate::session::{CompressedCache, LayerCache, Scratch, StepShape};
use crate::weights::{Layer, Network, Router};

/// What a step computes with: the numbers of its rows and of its outputs, and its shape.
#[derive(Debug)]
pub struct Step<'a, Rows> {
    /// The rows.
    pub rows: &'a Rows,
    /// Those of them that go through the head.
    pub outputs: &'a Rows,
    /// The numbers that choose what is recorded.
    pub shape: &'a StepShape,
    /// Layers after which `scratch.taps` takes the mean over the streams.
    pub taps: &'a [usize],
}

/// Records one step: its rows go through every layer, and its outputs, a subset of
/// them, through the head. Afterwards `scratch.logits` holds f32
/// `[n_outputs, n_vocab]`, `scratch.choice` what was chosen from them if the step
/// asks for it, and the caches hold the rows' state.
pub fn forward<B: Backend>(
    b: &mut B,
    network: &Network<B::Weight>,
    caches: &mut [LayerCache<B::Buffer>],
    s: &mut Scratch<B::Buffer>,
    step: &Step<'_, B::Rows>,
) {
    let (rows, outputs, shape) = (step.rows, step.outputs, step.shape);
    b.embed(rows, &network.token_embd, &mut s.streams);
    if let Some(first) = network.layers.first() {
        let entry = attention_entry(first);
        b.hc_pre_norm(rows, &s.streams, entry, &mut s.gates, &mut s.x);
    }
    for (i, (layer, cache)) in network.layers.iter().zip(caches).enumerate() {
        let sublayer = AttentionSublayer {
            layer,
            cache,
            scratch: s,
            step: shape,
        };
        b.attention(rows, sublayer);
        turn(b, rows, s, experts_entry(layer));
        let sublayer = ExpertsSublayer {
            layer,
            scratch: s,
            step: shape,
        };
        b.experts(rows, sublayer);
        let tap = step.taps.iter().position(|tapped| *tapped == i);
        match network.layers.get(i + 1) {
            // A tap wants the streams between the two halves of a turn.
            Some(next) if tap.is_none() => turn(b, rows, s, attention_entry(next)),
            next => {
                b.hc_post(rows, &s.y, &s.gates, &mut s.streams);
                if let Some(at) = tap {
                    let taps = s.taps.as_mut().expect("scratch of the taps");
                    b.tap(rows, &s.streams, at, taps);
                }
                if let Some(next) = next {
                    let entry = attention_entry(next);
                    b.hc_pre_norm(rows, &s.streams, entry, &mut s.gates, &mut s.x);
                }
            }
        }
    }
    if shape.n_outputs > 0 {
        b.select_rows(outputs, &s.streams, &mut s.output_streams);
        b.hc_head(outputs, &s.output_streams, &network.output_hc, &mut s.h);
        b.rms_norm(outputs, &network.output_norm, &mut s.h);
        b.matmul(outputs, &network.output, &s.h, &mut s.logits);
        if shape.chooses {
            b.choose(outputs, &s.logits, &mut s.choice);
        }
    }
}

fn attention_entry<W>(layer: &Layer<W>) -> Entry<'_, W> {
    Entry {
        hc: &layer.hc_attn,
        norm: &layer.attn_norm,
    }
}

fn experts_entry<W>(layer: &Layer<W>) -> Entry<'_, W> {
    Entry {
        hc: &layer.hc_ffn,
        norm: &layer.ffn_norm,
    }
}

fn turn<B: Backend>(
    b: &mut B,
    rows: &B::Rows,
    s: &mut Scratch<B::Buffer>,
    next: Entry<'_, B::Weight>,
) {
    let turn = Turn {
        y: &s.y,
        next,
        gates: &mut s.gates,
        streams: &mut s.streams,
        x: &mut s.x,
    };
    b.turn(rows, turn);
}

/// The meaning of [`Backend::attention`].
pub fn attention<B: Backend>(
    b: &mut B,
    rows: &B::Rows,
    sublayer: AttentionSublayer<'_, B::Buffer, B::Weight>,
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
    let rounded = step.rounded;

    // Every product of the normed input.
    let qr = (&layer.attn_q_a, &mut s.qr);
    let kv = (&layer.attn_kv, &mut s.kv);
    match (&layer.attn_compressor, &layer.indexer) {
        (None, _) => b.matmuls(rows, &s.x, &mut [qr, kv]),
        (Some(c), None) => {
            let t = s.hca.as_mut().expect("scratch of a ratio-128 layer");
            b.matmuls(
                rows,
                &s.x,
                &mut [qr, kv, (&c.kv, &mut t.kv), (&c.gate, &mut t.gate)],
            );
        }
        (Some(c), Some(indexer)) => {
            let t = s.csa.as_mut().expect("scratch of a ratio-4 layer");
            let i = s.index.as_mut().expect("scratch of an indexer");
            let ic = &indexer.compressor;
            b.matmuls(
                rows,
                &s.x,
                &mut [
                    qr,
                    kv,
                    (&c.kv, &mut t.kv),
                    (&c.gate, &mut t.gate),
                    (&ic.kv, &mut i.rows.kv),
                    (&ic.gate, &mut i.rows.gate),
                    (&indexer.proj, &mut i.weights),
                ],
            );
        }
    }

    b.rms_norm(rows, &layer.attn_q_a_norm, &mut s.qr);
    b.matmul(rows, &layer.attn_q_b, &s.qr, &mut s.q);
    b.q_norm_rope(rows, table, &mut s.q);
    b.kv_norm_rope(rows, &layer.attn_kv_a_norm, table, rounded, &mut s.kv);

    // Compressed rows that this step completes, then the query's choice.
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
                rounded,
                kv: &t.kv,
                gate: &mut t.gate,
                pooled: &mut t.pooled,
                frontier,
                cache: cached,
            };
            b.compress(rows, operands);
            let mut selects = false;
            if let (Some(indexer), Some(index)) = (&layer.indexer, index) {
                let i = s.index.as_mut().expect("scratch of an indexer");
                let operands = Compress {
                    compressor: &indexer.compressor,
                    rounded,
                    kv: &i.rows.kv,
                    gate: &mut i.rows.gate,
                    pooled: &mut i.rows.pooled,
                    frontier: &mut index.frontier,
                    cache: &mut index.rows,
                };
                b.compress(rows, operands);
                if step.selects {
                    selects = true;
                    let index_dim = b.geometry().index_dim;
                    b.matmul(rows, &indexer.attn_q_b, &s.qr, &mut i.q);
                    b.rope(rows, table, Rotation::Forward, index_dim, &mut i.q);
                    if rounded {
                        b.index_round(rows, &mut i.q);
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
                    b.index_select(rows, operands);
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
    b.attend(rows, inputs, &mut s.o);
    b.store_window(rows, &s.kv, &mut cache.window);
    let head_dim = b.geometry().head_dim;
    b.rope(rows, table, Rotation::Inverse, head_dim, &mut s.o);
    b.matmul_grouped(rows, &layer.attn_output_a, &s.o, &mut s.u);
    b.matmul(rows, &layer.attn_output_b, &s.u, &mut s.y);
}

/// The meaning of [`Backend::experts`].
pub fn experts<B: Backend>(
    b: &mut B,
    rows: &B::Rows,
    sublayer: ExpertsSublayer<'_, B::Buffer, B::Weight>,
) {
    let (layer, s) = (sublayer.layer, sublayer.scratch);
    b.matmul(rows, &layer.ffn_gate_inp, &s.x, &mut s.router);
    b.router_scores(rows, &mut s.router);
    match &layer.router {
        Router::Hash(ids) => b.route_hash(rows, ids, &s.router, &mut s.routes),
        Router::TopK(bias) => b.route_top_k(rows, bias, &s.router, &mut s.routes),
    }
    let inputs = ExpertsGateUp {
        gate: &layer.ffn_gate_exps,
        up: &layer.ffn_up_exps,
        clamp: layer.expert_clamp,
        x: &s.x,
        routes: &s.routes,
    };
    b.experts_gate_up(rows, inputs, &mut s.hidden);
    b.experts_down(rows, &layer.ffn_down_exps, &s.hidden, &s.routes, &mut s.y);
    let inputs = GateUp {
        gate: &layer.ffn_gate_shexp,
        up: &layer.ffn_up_shexp,
        clamp: layer.shared_clamp,
        x: &s.x,
    };
    b.gate_up(rows, inputs, &mut s.shared_hidden);
    b.matmul(
        rows,
        &layer.ffn_down_shexp,
        &s.shared_hidden,
        &mut s.shared_y,
    );
    b.add(rows, &s.shared_y, &mut s.y);
}
