//! The reference's ops against values computed by independent implementations
//! (`unit.npz` of the shared data folder).

use ds4_conformance::fixtures::float_tensor;
use ds4_conformance::golden::{Npz, shared};
use ds4_formats::GgmlType;
use ds4_model::rounding::{hadamard, index_round_row, kv_round_row};
use ds4_model::weights::{Compressor, HyperConnection};
use ds4_model::{
    Backend, Compress, ElementType, Geometry, LayerKind, Place, Reference, Requirement,
    RopeFrequencies, RopeTable, Rotation, Routes, RowsImage, SegmentPlace, Shape, WeightRole,
};

fn unit() -> Option<Npz> {
    Some(Npz::open(&shared()?.join("data/golden/unit.npz")))
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f - e).abs() / e.abs().max(1.0);
        assert!(error <= tolerance, "{what}: value {i} is {f}, expected {e}");
    }
}

fn assert_bits(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        // Zeros of either sign are the same stored value's zero.
        assert!(f == e, "{what}: value {i} is {f:e}, expected exactly {e:e}");
    }
}

/// The reference with buffers made from and read into vectors.
struct Bench {
    b: Reference,
    rows: RowsImage,
}

type Buffer = <Reference as Backend>::Buffer;
type Weight = <Reference as Backend>::Weight;

impl Bench {
    /// `n_rows` rows of one slot from `first` on.
    fn new(geometry: &Geometry, first: usize, n_rows: usize) -> Bench {
        let mut rows = RowsImage::with_capacity(geometry, n_rows, true);
        let place = SegmentPlace::first(first);
        rows.push_segment(&RopeFrequencies::new(geometry), place, &vec![0; n_rows]);
        Bench {
            b: Reference::new(geometry),
            rows,
        }
    }

    fn buffer(&mut self, width: usize, values: &[f32]) -> Buffer {
        let shape = Shape::rows(values.len() / width, width);
        let mut buffer = self.b.alloc(ElementType::F32, shape).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.b
            .write(&mut buffer, Place { slot: 0, row: 0 }, &bytes)
            .unwrap();
        buffer
    }

    fn values(&mut self, buffer: &Buffer, n: usize) -> Vec<f32> {
        let mut bytes = vec![0; n * 4];
        self.b
            .read(buffer, Place { slot: 0, row: 0 }, &mut bytes)
            .unwrap();
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    fn weight(&mut self, role: WeightRole, ne: &[usize], values: &[f32]) -> Weight {
        let tensor = float_tensor("w", GgmlType::F32, ne, values);
        self.b
            .upload(&Requirement::alone(role, &tensor), tensor)
            .unwrap()
    }
}

#[test]
fn cache_rounding_is_the_publishers_to_the_bit() {
    let Some(mut unit) = unit() else { return };
    let (mut rows, expected) = (unit.f32s("kv_in"), unit.f32s("kv_out"));
    for (row, expected) in rows.chunks_mut(512).zip(expected.chunks(512)) {
        kv_round_row(row, 64);
        // The rotated channels are rounded to bf16 by us and untouched there.
        assert_bits("kv_round", &row[..448], &expected[..448]);
    }
}

#[test]
fn indexer_rounding_is_the_publishers_to_the_bit() {
    let Some(mut unit) = unit() else { return };
    let rows = unit.f32s("idx_in");
    let transformed = unit.f32s("idx_hadamard");
    let expected = unit.f32s("idx_out");
    for (i, row) in rows.chunks(128).enumerate() {
        let mut h = row.to_vec();
        hadamard(&mut h);
        assert_near("hadamard", &h, &transformed[i * 128..][..128], 1e-6);
        let mut rounded = row.to_vec();
        index_round_row(&mut rounded);
        assert_bits("index_round", &rounded, &expected[i * 128..][..128]);
    }
}

#[test]
fn rotary_angles_agree_up_to_a_million_tokens() {
    let Some(mut unit) = unit() else { return };
    let geometry = Geometry {
        head_dim: 128,
        ..Geometry::flash()
    };
    // Two units in the last place: the power function there is that far off.
    let ours = RopeFrequencies::new(&geometry);
    let theirs = RopeFrequencies {
        plain: unit.f32s("rope_main_inv"),
        compressed: unit.f32s("rope_comp_inv"),
    };
    for (found, expected) in ours
        .plain
        .iter()
        .chain(&ours.compressed)
        .zip(theirs.plain.iter().chain(&theirs.compressed))
    {
        let n_ulp = found.to_bits().abs_diff(expected.to_bits());
        assert!(
            n_ulp <= 2,
            "frequency {found} is {n_ulp} units from {expected}"
        );
    }
    let (x, expected) = (unit.f32s("rope_in"), unit.f32s("rope_comp_out"));
    let tables = [
        (
            RopeTable::Plain,
            unit.f32s("rope_main_cos"),
            unit.f32s("rope_main_sin"),
        ),
        (
            RopeTable::Compressed,
            unit.f32s("rope_comp_cos"),
            unit.f32s("rope_comp_sin"),
        ),
    ];
    for (i, position) in unit.i64s("rope_pos").into_iter().enumerate() {
        let mut t = Bench::new(&geometry, position as usize, 1);
        t.rows.clear();
        t.rows
            .push_segment(&theirs, SegmentPlace::first(position as usize), &[0]);
        for (table, cos, sin) in &tables {
            let angles = t.rows.angles(0, *table);
            let found_cos: Vec<f32> = angles.iter().step_by(2).copied().collect();
            let found_sin: Vec<f32> = angles.iter().skip(1).step_by(2).copied().collect();
            let what = format!("{table:?} at {position}");
            assert_near(&what, &found_cos, &cos[i * 32..][..32], 2e-7);
            assert_near(&what, &found_sin, &sin[i * 32..][..32], 2e-7);
        }
        let mut buffer = t.buffer(128, &x[i * 128..][..128]);
        t.b.rope(
            &t.rows,
            RopeTable::Compressed,
            Rotation::Forward,
            128,
            &mut buffer,
        );
        let found = t.values(&buffer, 128);
        assert_near("rope", &found, &expected[i * 128..][..128], 1e-6);
    }
}

#[test]
fn hyper_connections_agree() {
    let Some(mut unit) = unit() else { return };
    let geometry = Geometry {
        n_embd: 64,
        ..Geometry::flash()
    };
    let mut t = Bench::new(&geometry, 0, 1);
    let hc = HyperConnection {
        fn_: t.weight(WeightRole::PreciseMatrix, &[256, 24], &unit.f32s("hc_fn")),
        base: t.weight(WeightRole::Vector, &[24], &unit.f32s("hc_base")),
        scale: t.weight(WeightRole::Vector, &[3], &unit.f32s("hc_scale")),
    };
    let mut streams = t.buffer(256, &unit.f32s("hc_X"));
    let (mut gates, mut x) = (t.buffer(24, &[0.0; 24]), t.buffer(64, &[0.0; 64]));
    t.b.hc_gates(&t.rows, &streams, &hc, &mut gates);
    t.b.hc_pre(&t.rows, &streams, &gates, &mut x);
    let found = t.values(&gates, 24);
    assert_near("post", &found[4..8], &unit.f32s("hc_post"), 2e-6);
    assert_near("comb", &found[8..], &unit.f32s("hc_comb"), 2e-6);
    let found = t.values(&x, 64);
    assert_near("hc_pre", &found, &unit.f32s("hc_x"), 2e-6);

    let head = HyperConnection {
        fn_: t.weight(WeightRole::PreciseMatrix, &[256, 4], &unit.f32s("head_fn")),
        base: t.weight(WeightRole::Vector, &[4], &unit.f32s("head_base")),
        scale: t.weight(WeightRole::Vector, &[1], &unit.f32s("head_scale")),
    };
    t.b.hc_head(&t.rows, &streams, &head, &mut x);
    let found = t.values(&x, 64);
    assert_near("hc_head", &found, &unit.f32s("head_out"), 2e-6);

    let y = t.buffer(64, &unit.f32s("hc_y"));
    t.b.hc_post(&t.rows, &y, &gates, &mut streams);
    let found = t.values(&streams, 256);
    assert_near("hc_post", &found, &unit.f32s("hc_Xout"), 4e-6);
}

#[test]
fn the_router_agrees() {
    let Some(mut unit) = unit() else { return };
    let geometry = Geometry::flash();
    let mut t = Bench::new(&geometry, 0, 8);
    let mut scores = t.buffer(256, &unit.f32s("router_logits"));
    let bias = t.weight(WeightRole::Vector, &[256], &unit.f32s("router_bias"));
    let mut routes = Routes {
        experts: t.b.alloc(ElementType::U32, Shape::rows(8, 6)).unwrap(),
        weights: t.buffer(6, &[0.0; 48]),
    };
    t.b.router_scores(&t.rows, &mut scores);
    t.b.route_top_k(&t.rows, &bias, &scores, &mut routes);
    let mut bytes = vec![0; 8 * 6 * 4];
    t.b.read(&routes.experts, Place { slot: 0, row: 0 }, &mut bytes)
        .unwrap();
    let weights = t.values(&routes.weights, 48);
    // The order among the chosen is not part of the meaning.
    let mut found: Vec<(usize, i32, f32)> = bytes
        .chunks_exact(4)
        .zip(&weights)
        .enumerate()
        .map(|(i, (b, w))| (i / 6, i32::from_le_bytes([b[0], b[1], b[2], b[3]]), *w))
        .collect();
    let mut expected: Vec<(usize, i32, f32)> = unit
        .i32s("router_ids")
        .into_iter()
        .zip(unit.f32s("router_weights"))
        .enumerate()
        .map(|(i, (id, w))| (i / 6, id, w))
        .collect();
    found.sort_by_key(|(r, id, _)| (*r, *id));
    expected.sort_by_key(|(r, id, _)| (*r, *id));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((found.0, found.1), (expected.0, expected.1));
        assert!(
            (found.2 - expected.2).abs() < 2e-6,
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn both_compressors_agree_in_rows_and_in_what_they_keep() {
    let Some(mut unit) = unit() else { return };
    for (name, kind, n_tokens) in [
        ("comp4", LayerKind::Csa, 23),
        ("comp128", LayerKind::Hca, 300),
    ] {
        let geometry = Geometry {
            n_embd: 48,
            head_dim: 128,
            ..Geometry::flash()
        };
        let (row_dim, dim) = (128, kind.compressor_dim(128));
        let ratio = kind.ratio().unwrap();
        let mut t = Bench::new(&geometry, 0, n_tokens);
        let matrix =
            |t: &mut Bench, values: &[f32]| t.weight(WeightRole::PreciseMatrix, &[48, dim], values);
        let compressor = Compressor {
            kind,
            index: false,
            row_dim,
            kv: matrix(&mut t, &unit.f32s(&format!("{name}_wkv.weight"))),
            gate: matrix(&mut t, &unit.f32s(&format!("{name}_wgate.weight"))),
            ape: t.weight(
                WeightRole::Vector,
                &[dim, ratio],
                &unit.f32s(&format!("{name}_ape")),
            ),
            norm: t.weight(
                WeightRole::Vector,
                &[row_dim],
                &unit.f32s(&format!("{name}_norm.weight")),
            ),
        };
        let x = t.buffer(48, &unit.f32s(&format!("{name}_x")));
        let zeros = |n: usize| vec![0.0; n];
        let (mut kv, mut gate) = (
            t.buffer(dim, &zeros(n_tokens * dim)),
            t.buffer(dim, &zeros(n_tokens * dim)),
        );
        t.b.matmul(&t.rows, &compressor.kv, &x, &mut kv);
        t.b.matmul(&t.rows, &compressor.gate, &x, &mut gate);
        let mut pooled = t.buffer(row_dim, &zeros(n_tokens * row_dim));
        let mut frontier = t.buffer(2 * dim, &zeros(kind.n_pooled() * 2 * dim));
        let mut cache = t.buffer(row_dim, &zeros(n_tokens / ratio * row_dim));
        let operands = Compress {
            compressor: &compressor,
            rounded: false,
            kv: &kv,
            gate: &mut gate,
            pooled: &mut pooled,
            frontier: &mut frontier,
            cache: &mut cache,
        };
        t.b.compress(&t.rows, operands);
        let found = t.values(&cache, n_tokens / ratio * row_dim);
        assert_near(name, &found, &unit.f32s(&format!("{name}_rows")), 5e-6);

        // What the streaming form keeps: for ratio 4 slots 0..4 are the
        // previous window and 4.. the unfinished one; for ratio 128 the
        // unfinished window. Ours are a ring over positions.
        let ring = t.values(&frontier, kind.n_pooled() * 2 * dim);
        let (state_kv, state_gate) = (
            unit.f32s(&format!("{name}_state_kv")),
            unit.f32s(&format!("{name}_state_sc")),
        );
        let group = n_tokens / ratio * ratio;
        for p in group.saturating_sub(if kind == LayerKind::Csa { ratio } else { 0 })..n_tokens {
            let slot = match kind {
                LayerKind::Csa => p + ratio - group,
                _ => p - group,
            };
            let ours = &ring[p % kind.n_pooled() * 2 * dim..][..2 * dim];
            assert_near(name, &ours[..dim], &state_kv[slot * dim..][..dim], 5e-6);
            assert_near(name, &ours[dim..], &state_gate[slot * dim..][..dim], 5e-6);
        }
    }
}
