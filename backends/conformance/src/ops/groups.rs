//! The ops, in groups that share inputs.

use ds4_formats::GgmlType;
use ds4_model::rounding::{KV_ROUND_BLOCK, index_round_row};
use ds4_model::weights::{Compressor, HyperConnection};
use ds4_model::{
    Attend, Backend, Choice, Compress, CompressedRows, ElementType, Entry, ExpertsGateUp, GateUp,
    Geometry, IndexScores, IndexSelect, LayerKind, N_CANDIDATES, Pool, RopeTable, Rotation, Routes,
    RowsImage, ScoreTile, Shape, Turn, WeightRole,
};

use super::bench::{Bench, Output, n_tokens, slots};
use super::{Case, Tolerance};
use crate::fixtures::{Random, float_tensor, id_tensor};

/// Values that bf16 holds exactly.
fn bf16_values(n: usize, random: &mut Random) -> Vec<f32> {
    random
        .normals(n, 1.0)
        .into_iter()
        .map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
        .collect()
}

/// Runs every op once and returns what each wrote.
pub(super) fn run<B: Backend>(
    b: &mut B,
    case: &Case,
    image: &RowsImage,
    tolerance: &Tolerance,
) -> Vec<Output> {
    let g = &case.geometry;
    let mut rows = b.alloc_rows(image.len()).expect("few rows");
    let mut t = Bench::new(b, image, tolerance);
    t.b.write_rows(&mut rows, image);
    let seed = 0x5eed + case.n_rows as u64;
    streams(&mut t, g, &rows, &mut Random(seed));
    dense(&mut t, g, case.ty, &rows, &mut Random(seed + 1));
    rows_and_queries(&mut t, g, &rows, &mut Random(seed + 2));
    compressors(&mut t, g, &rows, &mut Random(seed + 3));
    indexer(&mut t, g, &rows, &mut Random(seed + 4));
    attention(&mut t, g, &rows, &mut Random(seed + 5));
    experts(&mut t, g, case.ty, &rows, &mut Random(seed + 6));
    t.outputs
}

fn hyper_connection<B: Backend>(
    t: &mut Bench<'_, B>,
    g: &Geometry,
    n_out: usize,
    n_scale: usize,
    random: &mut Random,
) -> HyperConnection<B::Weight> {
    let n_in = g.n_hc * g.n_embd;
    HyperConnection {
        fn_: t.matrix(
            WeightRole::PreciseMatrix,
            GgmlType::F16,
            &[n_in, n_out],
            random,
        ),
        base: t.vector(n_out, random),
        scale: t.vector(n_scale, random),
    }
}

fn streams<B: Backend>(t: &mut Bench<'_, B>, g: &Geometry, rows: &B::Rows, random: &mut Random) {
    let width = g.n_hc * g.n_embd;
    for ty in [GgmlType::F16, GgmlType::F32, GgmlType::BF16] {
        let table = t.matrix(WeightRole::Embedding, ty, &[g.n_embd, g.n_vocab], random);
        let mut streams = t.poisoned(width);
        t.b.embed(rows, &table, &mut streams);
        t.record_f32("embed", &streams, width, 0.0);
    }

    let mut streams = t.random_input(width, random);
    let hc = hyper_connection(t, g, g.n_gates(), 3, random);
    let mut gates = t.poisoned(g.n_gates());
    t.b.hc_gates(rows, &streams, &hc, &mut gates);
    t.record_f32("hc_gates", &gates, g.n_gates(), t.tolerance.sums);

    let mut x = t.poisoned(g.n_embd);
    t.b.hc_pre(rows, &streams, &gates, &mut x);
    t.record_f32("hc_pre", &x, g.n_embd, t.tolerance.sums);

    let norm = t.vector(g.n_embd, random);
    let mut gates = t.poisoned(g.n_gates());
    let mut x = t.poisoned(g.n_embd);
    let entry = Entry {
        hc: &hc,
        norm: &norm,
    };
    t.b.hc_pre_norm(rows, &streams, entry, &mut gates, &mut x);
    t.record_f32("hc_pre_norm: gates", &gates, g.n_gates(), t.tolerance.sums);
    t.record_f32("hc_pre_norm", &x, g.n_embd, t.tolerance.sums);

    let y = t.random_input(g.n_embd, random);
    t.b.hc_post(rows, &y, &gates, &mut streams);
    t.record_f32("hc_post", &streams, width, t.tolerance.sums);

    let operands = Turn {
        y: &y,
        next: entry,
        gates: &mut gates,
        streams: &mut streams,
        x: &mut x,
    };
    t.b.turn(rows, operands);
    t.record_f32("turn: streams", &streams, width, t.tolerance.sums);
    t.record_f32("turn: gates", &gates, g.n_gates(), t.tolerance.sums);
    t.record_f32("turn", &x, g.n_embd, t.tolerance.sums);

    let mut taps = t.poisoned(3 * g.n_embd);
    for at in [2, 0, 1] {
        t.b.tap(rows, &streams, at, &mut taps);
    }
    t.record_f32("tap", &taps, 3 * g.n_embd, t.tolerance.sums);

    let head = hyper_connection(t, g, g.n_hc, 1, random);
    let mut h = t.poisoned(g.n_embd);
    t.b.hc_head(rows, &streams, &head, &mut h);
    t.record_f32("hc_head", &h, g.n_embd, t.tolerance.sums);

    // Every other row goes through the head.
    let mut subset = RowsImage::with_capacity(g, t.n_rows(), true);
    for row in (0..t.n_rows() - 1).step_by(2) {
        subset.push_from(t.image, row, 1.0);
    }
    let mut selected = t.b.alloc_rows(subset.len()).expect("few rows");
    t.b.write_rows(&mut selected, &subset);
    let mut out = t.poisoned(width);
    t.b.select_rows(&selected, &streams, &mut out);
    t.record_f32("select_rows", &out, width, t.tolerance.sums);
}

fn matrix_tolerance<B: Backend>(t: &Bench<'_, B>, ty: GgmlType) -> f32 {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => t.tolerance.products,
        _ => t.tolerance.quantised,
    }
}

fn dense<B: Backend>(
    t: &mut Bench<'_, B>,
    g: &Geometry,
    ty: GgmlType,
    rows: &B::Rows,
    random: &mut Random,
) {
    let products = matrix_tolerance(t, ty);
    let norm = t.vector(g.n_embd, random);
    let mut x = t.random_input(g.n_embd, random);
    t.b.rms_norm(rows, &norm, &mut x);
    t.record_f32("rms_norm", &x, g.n_embd, t.tolerance.sums);

    for n_out in [g.q_rank, 1, 67] {
        let w = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, n_out], random);
        let mut out = t.poisoned(n_out);
        t.b.matmul(rows, &w, &x, &mut out);
        t.record_f32("matmul", &out, n_out, products);
    }
    // Activations of a precise matrix are not quantised, whatever its type.
    let w = t.matrix(WeightRole::PreciseMatrix, ty, &[g.n_embd, 24], random);
    let mut out = t.poisoned(24);
    t.b.matmul(rows, &w, &x, &mut out);
    t.record_f32("matmul, precise", &out, 24, t.tolerance.sums);

    let a = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, 33], random);
    let p = t.matrix(
        WeightRole::PreciseMatrix,
        GgmlType::F16,
        &[g.n_embd, 16],
        random,
    );
    let c = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, 8], random);
    let (mut out_a, mut out_p, mut out_c) = (t.poisoned(33), t.poisoned(16), t.poisoned(8));
    t.b.matmuls(
        rows,
        &x,
        &mut [(&a, &mut out_a), (&p, &mut out_p), (&c, &mut out_c)],
    );
    t.record_f32("matmuls: first", &out_a, 33, products);
    t.record_f32("matmuls: precise", &out_p, 16, t.tolerance.sums);
    t.record_f32("matmuls: last", &out_c, 8, products);

    let n_out = g.n_out_groups * g.out_rank;
    let w = t.matrix(WeightRole::Matrix, ty, &[g.group_dim(), n_out], random);
    let o = t.random_input(g.n_heads * g.head_dim, random);
    let mut u = t.poisoned(n_out);
    t.b.matmul_grouped(rows, &w, &o, &mut u);
    t.record_f32("matmul_grouped", &u, n_out, products);

    let y = t.random_input(g.n_embd, random);
    t.b.add(rows, &y, &mut x);
    t.record_f32("add", &x, g.n_embd, t.tolerance.sums);
}

fn rows_and_queries<B: Backend>(
    t: &mut Bench<'_, B>,
    g: &Geometry,
    rows: &B::Rows,
    random: &mut Random,
) {
    let q_width = g.n_heads * g.head_dim;
    let mut q = t.random_input(q_width, random);
    t.b.head_norm(rows, g.head_dim, &mut q);
    t.record_f32("head_norm", &q, q_width, t.tolerance.sums);
    let tables = [
        RopeTable::Plain,
        RopeTable::Compressed,
        RopeTable::CsaStart,
        RopeTable::HcaStart,
    ];
    for table in tables {
        for rotation in [Rotation::Forward, Rotation::Inverse] {
            let mut q = t.random_input(q_width, random);
            t.b.rope(rows, table, rotation, g.head_dim, &mut q);
            t.record_f32("rope", &q, q_width, t.tolerance.sums);
        }
    }
    let index_width = g.n_index_heads * g.index_dim;
    let mut iq = t.random_input(index_width, random);
    t.b.rope(
        rows,
        RopeTable::Compressed,
        Rotation::Forward,
        g.index_dim,
        &mut iq,
    );
    t.record_f32("rope of index heads", &iq, index_width, t.tolerance.sums);

    let mut q = t.random_input(q_width, random);
    t.b.q_norm_rope(rows, RopeTable::Compressed, &mut q);
    t.record_f32("q_norm_rope", &q, q_width, t.tolerance.sums);

    // Magnitudes from far below the floor of the scale to large ones.
    let magnitudes: Vec<f32> = (0..t.n_rows() * g.head_dim)
        .map(|i| random.normal() * 10f32.powi((i / KV_ROUND_BLOCK % 9) as i32 - 6))
        .collect();
    let mut kv = t.input(g.head_dim, &magnitudes);
    t.b.kv_round(rows, &mut kv);
    t.record_f32("kv_round", &kv, g.head_dim, 0.0);

    // Small integers, whose Hadamard sums are exact in any order.
    let integers: Vec<f32> = (0..t.n_rows() * index_width)
        .map(|_| random.below(201) as f32 - 100.0)
        .collect();
    let mut iq = t.input(index_width, &integers);
    t.b.index_round(rows, &mut iq);
    t.record_f32("index_round", &iq, index_width, 0.0);

    let norm = t.vector(g.head_dim, random);
    let mut kv = t.random_input(g.head_dim, random);
    t.b.kv_norm_rope(rows, &norm, RopeTable::Plain, false, &mut kv);
    t.record_f32("kv_norm_rope", &kv, g.head_dim, t.tolerance.sums);
    let mut kv = t.random_input(g.head_dim, random);
    t.b.kv_norm_rope(rows, &norm, RopeTable::Compressed, true, &mut kv);
    // A last bit that differs before rounding can move a value by one E4M3
    // step, 1/8 to 1/16 of itself; few values do.
    t.record_f32("kv_norm_rope, rounded", &kv, g.head_dim, 1e-2);

    for n_ring in [g.window + 3, 5] {
        let shape = slots(n_ring, g.head_dim);
        let past = bf16_values(shape.len(), random);
        let mut ring = t.fill(shape, ElementType::Bf16, &past);
        let values = bf16_values(t.n_rows() * g.head_dim, random);
        let kv = t.input(g.head_dim, &values);
        t.b.store_window(rows, &kv, &mut ring);
        t.record_cache("store_window", &ring, ElementType::Bf16, shape);
    }
}

fn compressors<B: Backend>(
    t: &mut Bench<'_, B>,
    g: &Geometry,
    rows: &B::Rows,
    random: &mut Random,
) {
    for (kind, index) in [
        (LayerKind::Csa, false),
        (LayerKind::Hca, false),
        (LayerKind::Csa, true),
    ] {
        let row_dim = if index { g.index_dim } else { g.head_dim };
        let dim = kind.compressor_dim(row_dim);
        let ratio = kind.ratio().expect("compressed");
        let ape = random.normals(ratio * dim, 0.5);
        let compressor = Compressor {
            kind,
            index,
            row_dim,
            kv: t.matrix(
                WeightRole::PreciseMatrix,
                GgmlType::F16,
                &[g.n_embd, dim],
                random,
            ),
            gate: t.matrix(
                WeightRole::PreciseMatrix,
                GgmlType::F16,
                &[g.n_embd, dim],
                random,
            ),
            ape: t.upload(
                WeightRole::Vector,
                float_tensor("ape", GgmlType::F16, &[dim, ratio], &ape),
            ),
            norm: t.vector(row_dim, random),
        };
        let frontier_shape = slots(kind.n_pooled() + 3, 2 * dim);
        let frontier_values = random.normals(frontier_shape.len(), 1.0);
        let mut frontier = t.fill(frontier_shape, ElementType::F32, &frontier_values);
        let kv = t.random_input(dim, random);
        let mut gate = t.random_input(dim, random);
        let mut pooled = t.poisoned(row_dim);

        t.b.add_position_bias(rows, &compressor.ape, ratio, &mut gate);
        t.record_f32("add_position_bias", &gate, dim, t.tolerance.sums);
        let inputs = Pool {
            kind,
            kv: &kv,
            gate: &gate,
            frontier: &frontier,
        };
        t.b.pool(rows, inputs, &mut pooled);
        t.record_f32("pool", &pooled, row_dim, t.tolerance.sums);

        let cache_shape = Shape::rows(n_tokens() / ratio, row_dim);
        let past = bf16_values(cache_shape.len(), random);
        let mut cache = t.fill(cache_shape, ElementType::Bf16, &past);
        let values = bf16_values(t.n_rows() * row_dim, random);
        let rounded_rows = t.input(row_dim, &values);
        t.b.store_compressed(rows, ratio, &rounded_rows, &mut cache);
        t.record_cache("store_compressed", &cache, ElementType::Bf16, cache_shape);
        t.b.store_frontier(rows, &kv, &gate, &mut frontier);
        // The gate carries a sum of two floats, the same two on both sides.
        t.record_cache(
            "store_frontier",
            &frontier,
            ElementType::F32,
            frontier_shape,
        );

        for rounded in [false, true] {
            let mut frontier = t.fill(frontier_shape, ElementType::F32, &frontier_values);
            let element = if rounded {
                ElementType::Bf16
            } else {
                ElementType::F32
            };
            let mut cache = t.fill(cache_shape, element, &past);
            let mut gate = t.random_input(dim, random);
            let mut pooled = t.poisoned(row_dim);
            let operands = Compress {
                compressor: &compressor,
                rounded,
                kv: &kv,
                gate: &mut gate,
                pooled: &mut pooled,
                frontier: &mut frontier,
                cache: &mut cache,
            };
            t.b.compress(rows, operands);
            let values = t.floats(&cache, element, cache_shape);
            // As above: a rounded value may lie one step away, 1/2 to 1/4 of
            // itself for E2M1.
            let tolerance = if !rounded { t.tolerance.sums } else { 3e-2 };
            t.outputs.push(Output {
                op: format!("compress ({kind:?}, index {index}, rounded {rounded})"),
                values,
                tolerance,
            });
        }
    }
}

fn indexer<B: Backend>(t: &mut Bench<'_, B>, g: &Geometry, rows: &B::Rows, random: &mut Random) {
    let width = g.n_index_heads * g.index_dim;
    // On the grid of the model, so that 16-bit products of them are exact.
    let mut iq = random.normals(t.n_rows() * width, 1.0);
    for head in iq.chunks_exact_mut(g.index_dim) {
        index_round_row(head);
    }
    let iq = t.input(width, &iq);
    let weights = t.random_input(g.n_index_heads, random);
    let shape = Shape::rows(n_tokens() / 4, g.index_dim);
    let mut keys = bf16_values(shape.len(), random);
    for key in keys.chunks_exact_mut(g.index_dim) {
        index_round_row(key);
    }
    let cache = t.fill(shape, ElementType::Bf16, &keys);
    let n_rows = t.n_rows();
    // No row sees more.
    let stride = 101;

    // Scores of a block of rows in the middle, then all rows block by block.
    let tile = ScoreTile {
        rows: n_rows / 3..n_rows - 1,
        stride,
    };
    let shape = Shape::rows(tile.rows.len(), stride);
    let mut scores = t.fill(shape, ElementType::F32, &vec![0.0; shape.len()]);
    let inputs = IndexScores {
        tile: tile.clone(),
        queries: &iq,
        weights: &weights,
        cache: &cache,
    };
    t.b.index_scores(rows, inputs, &mut scores);
    let values = t.floats(&scores, ElementType::F32, shape);
    // Only visible scores are defined.
    let visible = values
        .chunks(stride)
        .zip(tile.rows)
        .flat_map(|(row, r)| row[..t.image.n_visible(r, 4)].to_vec())
        .collect();
    t.outputs.push(Output {
        op: "index_scores".to_owned(),
        values: visible,
        tolerance: t.tolerance.sums,
    });

    // Scores with many ties.
    let shape = Shape::rows(n_rows, stride);
    let ties: Vec<f32> = (0..shape.len())
        .map(|_| random.below(12) as f32 - 5.0)
        .collect();
    let scores = t.fill(shape, ElementType::F32, &ties);
    let selected_shape = Shape::rows(n_rows, g.index_top_k);
    let poison = vec![77.0; selected_shape.len()];
    let mut selected = t.fill(selected_shape, ElementType::U32, &poison);
    let tile = ScoreTile {
        rows: 0..n_rows,
        stride,
    };
    t.b.top_k(rows, tile, &scores, &mut selected);
    record_selected(t, g, "top_k", &selected);

    let scratch = Shape::rows(1, 3 * stride);
    let mut scores = t.fill(scratch, ElementType::F32, &vec![0.0; scratch.len()]);
    let mut selected = t.fill(selected_shape, ElementType::U32, &poison);
    let operands = IndexSelect {
        n_rows,
        score_rows: 3,
        stride,
        queries: &iq,
        weights: &weights,
        cache: &cache,
        scores: &mut scores,
        selected: &mut selected,
    };
    t.b.index_select(rows, operands);
    record_selected(t, g, "index_select", &selected);
}

/// Records the selected rows that exist.
fn record_selected<B: Backend>(t: &mut Bench<'_, B>, g: &Geometry, op: &str, selected: &B::Buffer) {
    let k = g.index_top_k;
    let values = t.floats(selected, ElementType::U32, Shape::rows(t.n_rows(), k));
    let values = values
        .chunks(k)
        .take(t.n_rows() - 1)
        .enumerate()
        .flat_map(|(r, ids)| ids[..k.min(t.image.n_visible(r, 4))].to_vec())
        .collect();
    t.outputs.push(Output {
        op: op.to_owned(),
        values,
        tolerance: 0.0,
    });
}

fn attention<B: Backend>(t: &mut Bench<'_, B>, g: &Geometry, rows: &B::Rows, random: &mut Random) {
    let width = g.n_heads * g.head_dim;
    let q = t.random_input(width, random);
    let kv = t.random_input(g.head_dim, random);
    let sinks = t.vector(g.n_heads, random);
    let k = g.index_top_k;
    let ids: Vec<f32> = (0..t.n_rows())
        .flat_map(|r| {
            let n = t.image.n_visible(r, 4).max(1);
            let mut ids: Vec<usize> = (0..k).map(|i| (i * 5 + r) % n).collect();
            ids.sort_unstable();
            ids.into_iter().map(|id| id as f32).collect::<Vec<_>>()
        })
        .collect();
    let selected = t.fill(Shape::rows(t.n_rows(), k), ElementType::U32, &ids);
    for element in [ElementType::F32, ElementType::Bf16] {
        let ring_shape = slots(g.window + 7, g.head_dim);
        let values = bf16_values(ring_shape.len(), random);
        let ring = t.fill(ring_shape, element, &values);
        let cache_shape = Shape::rows(n_tokens() / 4, g.head_dim);
        let values = bf16_values(cache_shape.len(), random);
        let cache = &t.fill(cache_shape, element, &values);
        let choices = [
            ("attend, window only", CompressedRows::None),
            (
                "attend, all of ratio 4",
                CompressedRows::All { cache, ratio: 4 },
            ),
            (
                "attend, all of ratio 128",
                CompressedRows::All { cache, ratio: 128 },
            ),
            (
                "attend, selected",
                CompressedRows::Selected {
                    cache,
                    ratio: 4,
                    selected: &selected,
                },
            ),
        ];
        for (op, compressed) in choices {
            let mut out = t.poisoned(width);
            let inputs = Attend {
                q: &q,
                kv: &kv,
                ring: &ring,
                compressed,
                sinks: &sinks,
            };
            t.b.attend(rows, inputs, &mut out);
            t.record_f32(op, &out, width, t.tolerance.products);
        }
    }
}

fn experts<B: Backend>(
    t: &mut Bench<'_, B>,
    g: &Geometry,
    ty: GgmlType,
    rows: &B::Rows,
    random: &mut Random,
) {
    let (e, k) = (g.n_experts, g.n_experts_used);
    let logits: Vec<f32> = random.normals(t.n_rows() * e, 8.0);
    let mut scores = t.input(e, &logits);
    t.b.router_scores(rows, &mut scores);
    t.record_f32("router_scores", &scores, e, t.tolerance.sums);

    // Scores on a coarse grid, so that there are ties and the choice is exact.
    let coarse: Vec<f32> = (0..t.n_rows() * e)
        .map(|_| (1 + random.below(9)) as f32 * 0.25)
        .collect();
    let scores = t.input(e, &coarse);
    let bias: Vec<f32> = (0..e).map(|_| random.below(3) as f32 * 0.25).collect();
    let bias = t.upload(
        WeightRole::Vector,
        float_tensor("bias", GgmlType::F32, &[e], &bias),
    );
    let poison = vec![0.0; t.n_rows() * k];
    let shape = Shape::rows(t.n_rows(), k);
    let mut routes = Routes {
        experts: t.fill(shape, ElementType::U32, &poison),
        weights: t.fill(shape, ElementType::F32, &poison),
    };
    let mut table = Vec::new();
    for token in 0..g.n_vocab {
        table.extend((0..k).map(|i| ((token * 7 + i * 2) % e) as u32));
    }
    let ids = t.upload(WeightRole::Ids, id_tensor("ids", &[k, g.n_vocab], &table));
    t.b.route_hash(rows, &ids, &scores, &mut routes);
    t.record("route_hash", &routes.experts, ElementType::U32, k, 0.0);
    t.record_f32("route_hash: weights", &routes.weights, k, t.tolerance.sums);
    t.b.route_top_k(rows, &bias, &scores, &mut routes);
    t.record("route_top_k", &routes.experts, ElementType::U32, k, 0.0);
    t.record_f32("route_top_k: weights", &routes.weights, k, t.tolerance.sums);

    let x = t.random_input(g.n_embd, random);
    let gate = t.matrix(
        WeightRole::Experts,
        ty,
        &[g.n_embd, g.expert_dim, e],
        random,
    );
    let up = t.matrix(
        WeightRole::Experts,
        ty,
        &[g.n_embd, g.expert_dim, e],
        random,
    );
    let down = t.matrix(
        WeightRole::Experts,
        ty,
        &[g.expert_dim, g.n_embd, e],
        random,
    );
    let mut hidden = t.poisoned(k * g.expert_dim);
    let inputs = ExpertsGateUp {
        gate: &gate,
        up: &up,
        clamp: 0.9,
        x: &x,
        routes: &routes,
    };
    t.b.experts_gate_up(rows, inputs, &mut hidden);
    let products = matrix_tolerance(t, ty);
    let tolerance = 2.0 * products;
    t.record_f32("experts_gate_up", &hidden, k * g.expert_dim, tolerance);
    let hidden = t.random_input(k * g.expert_dim, random);
    let mut y = t.poisoned(g.n_embd);
    t.b.experts_down(rows, &down, &hidden, &routes, &mut y);
    t.record_f32("experts_down", &y, g.n_embd, products);

    let gate = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, g.expert_dim], random);
    let up = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, g.expert_dim], random);
    let mut hidden = t.poisoned(g.expert_dim);
    let inputs = GateUp {
        gate: &gate,
        up: &up,
        clamp: 0.9,
        x: &x,
    };
    t.b.gate_up(rows, inputs, &mut hidden);
    t.record_f32("gate_up", &hidden, g.expert_dim, tolerance);
}

/// Runs `choose` on logits of the geometry's vocabulary, with many equal ones if asked.
pub(super) fn run_choice<B: Backend>(
    b: &mut B,
    g: &Geometry,
    full: &RowsImage,
    tolerance: &Tolerance,
    ties: bool,
) -> Vec<Output> {
    let mut image = RowsImage::with_capacity(g, full.len(), true);
    for row in 0..full.len() {
        image.push_from(full, row, [1.0, 0.3, 2.5][row % 3]);
    }
    let mut rows = b.alloc_rows(image.len()).expect("few rows");
    let mut t = Bench::new(b, &image, tolerance);
    t.b.write_rows(&mut rows, &image);
    let n = N_CANDIDATES.min(g.n_vocab);
    let mut random = Random(0xc401ce);
    let values: Vec<f32> = random
        .normals(t.n_rows() * g.n_vocab, 6.0)
        .into_iter()
        .map(|x| if ties { x.round() } else { x })
        .collect();
    let logits = t.input(g.n_vocab, &values);
    let shape = |width| Shape::rows(image.len(), width);
    let (of_ids, of_values, of_lse) = (shape(n), shape(n), shape(2));
    let mut choice = Choice {
        ids: t.fill(of_ids, ElementType::U32, &vec![0.0; of_ids.len()]),
        values: t.fill(of_values, ElementType::F32, &vec![0.0; of_values.len()]),
        lse: t.fill(of_lse, ElementType::F32, &vec![0.0; of_lse.len()]),
    };
    t.b.choose(&rows, &logits, &mut choice);
    t.record("choose: ids", &choice.ids, ElementType::U32, n, 0.0);
    t.record_f32("choose: values", &choice.values, n, 0.0);
    t.record_f32("choose: log-sum-exp", &choice.lse, 2, t.tolerance.sums);
    t.outputs
}

#[cfg(test)]
mod tests {
    use ds4_model::rounding::hadamard;

    /// This is what makes the comparison of `index_round` exact.
    #[test]
    fn hadamard_sums_of_small_integers_are_exact() {
        let mut row: Vec<f32> = (0..128).map(|i| (i * 37 % 201) as f32 - 100.0).collect();
        let exact: Vec<f64> = (0..128)
            .map(|i| {
                (0..128usize)
                    .map(|j| {
                        let sign = if (i & j).count_ones() % 2 == 0 {
                            1.0
                        } else {
                            -1.0
                        };
                        f64::from(row[j]) * sign
                    })
                    .sum()
            })
            .collect();
        hadamard(&mut row);
        for (found, exact) in row.iter().zip(exact) {
            assert_eq!(*found, exact as f32 * 128f32.powf(-0.5));
        }
    }
}
