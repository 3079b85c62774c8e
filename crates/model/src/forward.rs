//! The forward pass: one straight line over a [`Backend`], for any rows.

use crate::backend::{Backend, CompressedRows, Rotation};
use crate::geometry::LayerKind;
use crate::rope::RopeTable;
use crate::session::{CompressedCache, LayerCache, Scratch, StepShape};
use crate::weights::{Layer, Network, Router};

/// Records one step: `rows` go through every layer, and `outputs`, a subset of
/// them, through the head. Afterwards `scratch.logits` holds f32
/// `[n_outputs, n_vocab]`, and the caches hold the rows' state.
pub fn forward<B: Backend>(
    b: &mut B,
    network: &Network<B::Weight>,
    caches: &mut [LayerCache<B::Buffer>],
    s: &mut Scratch<B::Buffer>,
    rows: &B::Rows,
    outputs: &B::Rows,
    step: &StepShape,
) {
    b.embed(rows, &network.token_embd, &mut s.streams);
    for (layer, cache) in network.layers.iter().zip(caches) {
        b.hc_pre_norm(
            rows,
            &s.streams,
            &layer.hc_attn,
            &layer.attn_norm,
            &mut s.gates,
            &mut s.x,
        );
        attention(b, layer, cache, s, rows, step);
        b.hc_post(rows, &s.y, &s.gates, &mut s.streams);

        b.hc_pre_norm(
            rows,
            &s.streams,
            &layer.hc_ffn,
            &layer.ffn_norm,
            &mut s.gates,
            &mut s.x,
        );
        experts(b, layer, s, rows);
        b.hc_post(rows, &s.y, &s.gates, &mut s.streams);
    }
    if step.n_outputs > 0 {
        b.select_rows(outputs, &s.streams, &mut s.output_streams);
        b.hc_head(outputs, &s.output_streams, &network.output_hc, &mut s.h);
        b.rms_norm(outputs, &network.output_norm, &mut s.h);
        b.matmul(outputs, &network.output, &s.h, &mut s.logits);
    }
}

/// `s.x` to `s.y`.
fn attention<B: Backend>(
    b: &mut B,
    layer: &Layer<B::Weight>,
    cache: &mut LayerCache<B::Buffer>,
    s: &mut Scratch<B::Buffer>,
    rows: &B::Rows,
    step: &StepShape,
) {
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
            b.compress(
                rows,
                compressor,
                rounded,
                &t.kv,
                &mut t.gate,
                &mut t.pooled,
                frontier,
                cached,
            );
            let mut selects = false;
            if let (Some(indexer), Some(index)) = (&layer.indexer, index) {
                let i = s.index.as_mut().expect("scratch of an indexer");
                b.compress(
                    rows,
                    &indexer.compressor,
                    rounded,
                    &i.rows.kv,
                    &mut i.rows.gate,
                    &mut i.rows.pooled,
                    &mut index.frontier,
                    &mut index.rows,
                );
                if step.selects {
                    selects = true;
                    let index_dim = b.geometry().index_dim;
                    b.matmul(rows, &indexer.attn_q_b, &s.qr, &mut i.q);
                    b.rope(rows, table, Rotation::Forward, index_dim, &mut i.q);
                    if rounded {
                        b.index_round(rows, &mut i.q);
                    }
                    b.index_select(
                        rows,
                        step.n_rows,
                        step.score_rows,
                        &i.q,
                        &i.weights,
                        &index.rows,
                        &mut i.scores,
                        &mut i.selected,
                    );
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

    b.attend(
        rows,
        &s.q,
        &s.kv,
        &cache.window,
        compressed,
        &layer.attn_sinks,
        &mut s.o,
    );
    b.store_window(rows, &s.kv, &mut cache.window);
    let head_dim = b.geometry().head_dim;
    b.rope(rows, table, Rotation::Inverse, head_dim, &mut s.o);
    b.matmul_grouped(rows, &layer.attn_output_a, &s.o, &mut s.u);
    b.matmul(rows, &layer.attn_output_b, &s.u, &mut s.y);
}

/// `s.x` to `s.y`.
fn experts<B: Backend>(
    b: &mut B,
    layer: &Layer<B::Weight>,
    s: &mut Scratch<B::Buffer>,
    rows: &B::Rows,
) {
    b.matmul(rows, &layer.ffn_gate_inp, &s.x, &mut s.router);
    b.router_scores(rows, &mut s.router);
    match &layer.router {
        Router::Hash(ids) => b.route_hash(rows, ids, &s.router, &mut s.routes),
        Router::TopK(bias) => b.route_top_k(rows, bias, &s.router, &mut s.routes),
    }
    b.experts_gate_up(
        rows,
        &layer.ffn_gate_exps,
        &layer.ffn_up_exps,
        layer.expert_clamp,
        &s.x,
        &s.routes,
        &mut s.hidden,
    );
    b.experts_down(rows, &layer.ffn_down_exps, &s.hidden, &s.routes, &mut s.y);
    b.gate_up(
        rows,
        &layer.ffn_gate_shexp,
        &layer.ffn_up_shexp,
        layer.shared_clamp,
        &s.x,
        &mut s.shared_hidden,
    );
    b.matmul(
        rows,
        &layer.ffn_down_shexp,
        &s.shared_hidden,
        &mut s.shared_y,
    );
    b.add(rows, &s.shared_y, &mut s.y);
}
