//! The attention sublayer.

use super::*;

/// Whether the attention sublayer's weights are in the forms that the kernels take.
fn attention_fits(layer: &Layer<Weight>) -> bool {
    let dense = [
        &layer.attn_q_a,
        &layer.attn_kv,
        &layer.attn_q_b,
        &layer.attn_output_a,
        &layer.attn_output_b,
    ];
    let halves = |c: &Compressor<Weight>| is_f16(&c.kv) && is_f16(&c.gate);
    dense.into_iter().all(is_q8)
        && layer.attn_compressor.as_ref().is_none_or(halves)
        && layer.indexer.as_ref().is_none_or(|indexer| {
            halves(&indexer.compressor) && is_f16(&indexer.attn_q_b) && is_f16(&indexer.proj)
        })
}

impl CudaBackend {
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
            x_half: 0,
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
        let mut kept = CompressArgs {
            rows: rows.view(),
            window_rows: at.kv,
            window: cache.window.address(),
            n_ring: n(cache.window.shape().n_rows),
            rounded: 1,
            n_parts: 0,
            pad: 0,
            parts: [CompressPart::default(); 2],
        };
        let mut selected = 0;
        let mut compressed = (0, 0);
        if let (Some(compressor), Some(c)) = (&layer.attn_compressor, &cache.compressed) {
            let t = match layer.kind {
                LayerKind::Csa => s.csa.as_ref(),
                _ => s.hca.as_ref(),
            };
            let t = t.expect("scratch of a compressed layer");
            let ratio = compressor.kind.ratio().expect("a compressed layer");
            compressed = (c.rows.address(), ratio);
            kept.parts[0] =
                CompressPart::new(compressor, &t.kv, &t.gate, &c.frontier, &c.rows, ratio);
            kept.n_parts = 1;
            if let (Some(indexer), Some(index)) = (&layer.indexer, &c.index) {
                let i = s.index.as_ref().expect("scratch of an indexer");
                let (kv, gate) = (&i.rows.kv, &i.rows.gate);
                kept.parts[1] = CompressPart::new(
                    &indexer.compressor,
                    kv,
                    gate,
                    &index.frontier,
                    &index.rows,
                    ratio,
                );
                kept.n_parts = 2;
            }
            let launch = Launch::new([n_rows, kept.n_parts as usize, 1], 128);
            self.run(
                &unit("prefill/compress.cu"),
                "compress_rows",
                launch,
                &[p(&kept)],
            );
            if let (true, Some(indexer), Some(index)) = (step.selects, &layer.indexer, &c.index) {
                let i = s.index.as_mut().expect("scratch of an indexer");
                self.dense_f16(qr, &[to_f32(&indexer.attn_q_b, &i.q)]);
                let args = prepare(i.q.address(), at.iq, 0);
                self.run(&file, "iq_prepare", heads, &[p(&args)]);
                self.fast_select(rows, step, &at, &index.rows, i);
                selected = i.selected.address();
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
        let shared = 65_536 + 2 * bn * 1024 + 64 * (bn * 2 + 16) + 2048;
        let file = unit("prefill/attend.cu");
        let launch = Launch::new([n_rows, splits, 1], 256).shared(shared);
        self.run(&file, "attend", launch, &[p(&args)]);
        if splits > 1 {
            let launch = Launch::new([n_rows, 8, 1], 256);
            self.run(&file, "attend_combine", launch, &[p(&args)]);
        }
        // Window and frontier rows, when nothing reads the older ones any more.
        let launch = Launch::new([n_rows, kept.n_parts as usize + 1, 1], 128);
        self.run(
            &unit("prefill/compress.cu"),
            "store_rows",
            launch,
            &[p(&kept)],
        );

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
}
