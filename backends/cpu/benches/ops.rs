//! Times of the ops that are not matrix products, at the published geometry.
//!
//! `cargo bench -p ds4-cpu --bench ops -- 'decode/'` is one row at several lengths of context;
//! `prefill/` is a chunk of rows. The fastest path and all processors are used.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ds4_cpu::{Buffer, CpuBackend, CpuOptions, Weight};
use ds4_formats::small_float::e2m1_to_f32;
use ds4_formats::{GgmlType, Tensor};
use ds4_model::weights::{Compressor, HyperConnection};
use ds4_model::{
    Attend, Backend, Compress, CompressedRows, ElementType, Entry, Geometry, IndexScores,
    LayerKind, Place, Requirement, RopeFrequencies, RopeTable, Rotation, Routes, RowsImage,
    ScoreTile, SegmentPlace, Shape, WeightRole,
};

/// A backend and a stream of numbers to fill its buffers with.
struct Bench {
    cpu: CpuBackend,
    geometry: Geometry,
    seed: u32,
}

impl Bench {
    fn new() -> Bench {
        let geometry = Geometry::flash();
        Bench {
            cpu: CpuBackend::new(&geometry, CpuOptions::default()).expect("a backend"),
            geometry,
            seed: 1,
        }
    }

    /// Uniform in -1 .. 1, rounded to what bf16 and f16 hold.
    fn number(&mut self) -> f32 {
        self.seed = self
            .seed
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        (self.seed >> 24) as f32 / 128.0 - 1.0
    }

    fn fill(&mut self, element: ElementType, shape: Shape) -> Buffer {
        let mut buffer = self.cpu.alloc(element, shape).expect("memory");
        let mut bytes = Vec::new();
        for _ in 0..shape.len() {
            let x = self.number();
            match element {
                ElementType::F32 => bytes.extend_from_slice(&x.to_le_bytes()),
                ElementType::Bf16 => bytes.extend_from_slice(&x.to_le_bytes()[2..]),
                ElementType::U32 => bytes.extend_from_slice(&[0; 4]),
            }
        }
        let at = Place { slot: 0, row: 0 };
        self.cpu.write(&mut buffer, at, &bytes).expect("memory");
        buffer
    }

    /// What rounding leaves of index rows: E2M1 values.
    fn index_rows(&mut self, element: ElementType, n_rows: usize, width: usize) -> Buffer {
        let shape = Shape::rows(n_rows, width);
        let mut buffer = self.cpu.alloc(element, shape).expect("memory");
        let mut bytes = Vec::new();
        for _ in 0..shape.len() {
            let x = e2m1_to_f32((self.number() * 8.0) as i8 as u8).to_le_bytes();
            bytes.extend_from_slice(&x[4 - element.n_bytes()..]);
        }
        let at = Place { slot: 0, row: 0 };
        self.cpu.write(&mut buffer, at, &bytes).expect("memory");
        buffer
    }

    fn rows(&mut self, n_rows: usize, width: usize) -> Buffer {
        self.fill(ElementType::F32, Shape::rows(n_rows, width))
    }

    fn cache(&mut self, n_rows: usize, width: usize) -> Buffer {
        self.fill(ElementType::Bf16, Shape::rows(n_rows.max(1), width))
    }

    fn weight(&mut self, role: WeightRole, ty: GgmlType, ne: &[u64]) -> Weight {
        let mut data = Vec::new();
        for _ in 0..ne.iter().product() {
            let x = self.number();
            match ty {
                GgmlType::F32 => data.extend_from_slice(&x.to_le_bytes()),
                // Small numbers of either sign.
                _ => data.extend_from_slice(&[0, 0x20 | if x < 0.0 { 0x80 } else { 0 }]),
            }
        }
        let tensor = Tensor::new("w", ty, ne, data.into()).expect("a shape");
        self.cpu
            .upload(&Requirement::alone(role, &tensor), tensor)
            .expect("memory")
    }

    fn vector(&mut self, n: usize) -> Weight {
        self.weight(WeightRole::Vector, GgmlType::F32, &[n as u64])
    }
}

/// Times every op for `n_rows` rows of which the last is token `context` of its sequence.
fn ops(c: &mut Criterion, n_rows: usize, context: usize) {
    let mut bench = Bench::new();
    let b = &mut bench;
    let g = b.geometry.clone();
    let kind = if n_rows == 1 { "decode" } else { "prefill" };
    let mut group = c.benchmark_group(format!("{kind}/{n_rows} rows at {context}"));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));

    let mut image = RowsImage::with_capacity(&g, n_rows, true);
    let tokens = vec![0; n_rows];
    let first = context - n_rows;
    image.push_segment(
        &RopeFrequencies::new(&g),
        SegmentPlace::first(first),
        &tokens,
    );
    let mut rows = b.cpu.alloc_rows(n_rows).expect("memory");
    b.cpu.write_rows(&mut rows, &image);
    let rows = &rows;

    let mut q = b.rows(n_rows, g.n_heads * g.head_dim);
    let mut kv = b.rows(n_rows, g.head_dim);
    let mut o = b.rows(n_rows, g.n_heads * g.head_dim);
    let ring = b.cache(g.window + 64, g.head_dim);
    let sinks = b.vector(g.n_heads);
    for (name, ratio) in [("attend window", 0), ("attend HCA", 128), ("attend CSA", 4)] {
        let cache = b.cache(context / ratio.max(1), g.head_dim);
        let mut selected = b.fill(ElementType::U32, Shape::rows(n_rows, g.index_top_k));
        let mut ids = Vec::new();
        for r in 0..n_rows {
            // Spread over what is visible, as an indexer's choice is.
            let n_visible = image.n_visible(r, 4).max(1);
            let step = (n_visible / g.index_top_k).max(1);
            for i in 0..g.index_top_k {
                ids.extend_from_slice(&((i * step % n_visible) as u32).to_le_bytes());
            }
        }
        let at = Place { slot: 0, row: 0 };
        b.cpu.write(&mut selected, at, &ids).expect("memory");
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let compressed = match ratio {
                    0 => CompressedRows::None,
                    128 => CompressedRows::All {
                        cache: &cache,
                        ratio,
                    },
                    _ => CompressedRows::Selected {
                        cache: &cache,
                        ratio,
                        selected: &selected,
                    },
                };
                let inputs = Attend {
                    q: &q,
                    kv: &kv,
                    ring: &ring,
                    compressed,
                    sinks: &sinks,
                };
                b.cpu.attend(rows, inputs, &mut o);
            });
        });
    }

    let n_index = context / 4;
    let index_width = g.n_index_heads * g.index_dim;
    let mut unrounded = b.rows(n_rows, index_width);
    group.bench_function("index_round", |bencher| {
        bencher.iter(|| b.cpu.index_round(rows, &mut unrounded));
    });
    let keys = b.index_rows(ElementType::Bf16, n_index, g.index_dim);
    let iq = b.index_rows(ElementType::F32, n_rows, index_width);
    let head_weights = b.rows(n_rows, g.n_index_heads);
    let score_rows = ((64 << 20) / (n_index * 4)).clamp(1, n_rows);
    let mut scores = b.rows(score_rows, n_index);
    let mut selected = b.fill(ElementType::U32, Shape::rows(n_rows, g.index_top_k));
    let tile = |start: usize| ScoreTile {
        rows: start..(start + score_rows).min(n_rows),
        stride: n_index,
    };
    group.bench_function("index_scores", |bencher| {
        bencher.iter(|| {
            for start in (0..n_rows).step_by(score_rows) {
                let inputs = IndexScores {
                    tile: tile(start),
                    queries: &iq,
                    weights: &head_weights,
                    cache: &keys,
                };
                b.cpu.index_scores(rows, inputs, &mut scores);
            }
        });
    });
    group.bench_function("top_k", |bencher| {
        bencher.iter(|| {
            for start in (0..n_rows).step_by(score_rows) {
                b.cpu.top_k(rows, tile(start), &scores, &mut selected);
            }
        });
    });

    let width = g.n_hc * g.n_embd;
    let mut streams = b.rows(n_rows, width);
    let mut gates = b.rows(n_rows, g.n_gates());
    let (mut x, y) = (b.rows(n_rows, g.n_embd), b.rows(n_rows, g.n_embd));
    let ne = [width as u64, g.n_gates() as u64];
    let hc = HyperConnection {
        fn_: b.weight(WeightRole::PreciseMatrix, GgmlType::F16, &ne),
        base: b.vector(g.n_gates()),
        scale: b.vector(3),
    };
    let norm = b.vector(g.n_embd);
    group.bench_function("hc_pre_norm", |bencher| {
        bencher.iter(|| {
            let entry = Entry {
                hc: &hc,
                norm: &norm,
            };
            b.cpu.hc_pre_norm(rows, &streams, entry, &mut gates, &mut x)
        });
    });
    group.bench_function("hc_post", |bencher| {
        bencher.iter(|| b.cpu.hc_post(rows, &y, &gates, &mut streams));
    });
    group.bench_function("rms_norm", |bencher| {
        bencher.iter(|| b.cpu.rms_norm(rows, &norm, &mut x));
    });
    group.bench_function("add", |bencher| {
        bencher.iter(|| b.cpu.add(rows, &y, &mut x));
    });

    let table = RopeTable::Compressed;
    let kv_norm = b.vector(g.head_dim);
    group.bench_function("q_norm_rope", |bencher| {
        bencher.iter(|| b.cpu.q_norm_rope(rows, table, &mut q));
    });
    group.bench_function("rope of the output", |bencher| {
        bencher.iter(|| {
            b.cpu
                .rope(rows, table, Rotation::Inverse, g.head_dim, &mut o)
        });
    });
    group.bench_function("kv_norm_rope", |bencher| {
        bencher.iter(|| b.cpu.kv_norm_rope(rows, &kv_norm, table, true, &mut kv));
    });
    let mut window = b.cache(g.window + 64, g.head_dim);
    group.bench_function("store_window", |bencher| {
        bencher.iter(|| b.cpu.store_window(rows, &kv, &mut window));
    });

    for (name, kind, index, row_dim) in [
        ("compress CSA", LayerKind::Csa, false, g.head_dim),
        ("compress HCA", LayerKind::Hca, false, g.head_dim),
        ("compress index", LayerKind::Csa, true, g.index_dim),
    ] {
        let dim = kind.compressor_dim(row_dim);
        let ratio = kind.ratio().expect("compressed");
        let tiny = |b: &mut Bench| b.weight(WeightRole::PreciseMatrix, GgmlType::F16, &[1, 1]);
        let compressor = Compressor {
            kind,
            index,
            row_dim,
            kv: tiny(b),
            gate: tiny(b),
            ape: b.weight(
                WeightRole::Vector,
                GgmlType::F32,
                &[dim as u64, ratio as u64],
            ),
            norm: b.vector(row_dim),
        };
        let mut frontier = b.rows(kind.n_pooled() + 64, 2 * dim);
        let (kv, mut gate) = (b.rows(n_rows, dim), b.rows(n_rows, dim));
        let mut pooled = b.rows(n_rows, row_dim);
        let mut cache = b.cache(context / ratio, row_dim);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let operands = Compress {
                    compressor: &compressor,
                    rounded: true,
                    kv: &kv,
                    gate: &mut gate,
                    pooled: &mut pooled,
                    frontier: &mut frontier,
                    cache: &mut cache,
                };
                b.cpu.compress(rows, operands);
            });
        });
    }

    let mut router = b.rows(n_rows, g.n_experts);
    let bias = b.vector(g.n_experts);
    let mut routes = Routes {
        experts: b.fill(ElementType::U32, Shape::rows(n_rows, g.n_experts_used)),
        weights: b.rows(n_rows, g.n_experts_used),
    };
    group.bench_function("router_scores", |bencher| {
        bencher.iter(|| b.cpu.router_scores(rows, &mut router));
    });
    group.bench_function("route_top_k", |bencher| {
        bencher.iter(|| b.cpu.route_top_k(rows, &bias, &router, &mut routes));
    });
    group.finish();
}

fn all(c: &mut Criterion) {
    for context in [2048, 32_768] {
        ops(c, 1, context);
        ops(c, 512, context);
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
