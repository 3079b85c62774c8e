//! Every op against the reference, at awkward shapes.
//!
//! A case is a geometry, a set of rows of several slots (some in the middle of
//! a group, some completing one, one of padding) and a weight type. All ops run
//! on the same random inputs on both backends; outputs are poisoned first, so
//! that a row that is not written is seen.

use ds4_formats::{GgmlType, Tensor};
use ds4_model::rounding::KV_ROUND_BLOCK;
use ds4_model::weights::{Compressor, HyperConnection};
use ds4_model::{
    Backend, CompressedRows, ElementType, Geometry, LayerKind, Place, Reference, RopeFrequencies,
    RopeTable, Rotation, Routes, RowsImage, Shape, Unfused, WeightRole,
};

use crate::fixtures::{Random, float_tensor, id_tensor, random_tensor};

/// Types every backend must multiply by.
pub const WEIGHT_TYPES: &[GgmlType] = &[
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ2_XXS,
    GgmlType::IQ2_XS,
    GgmlType::IQ2_S,
    GgmlType::IQ3_XXS,
    GgmlType::IQ3_S,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
    GgmlType::IQ1_S,
    GgmlType::IQ1_M,
    GgmlType::MXFP4,
];

/// Row counts that are not a multiple of anything a kernel likes, and some that are.
pub const ROW_COUNTS: &[usize] = &[1, 2, 3, 5, 8, 13, 33, 130];

/// Relative error (of the norm) allowed for sums in another order.
pub const SUM_TOLERANCE: f32 = 2e-5;
/// Relative error (of the norm) allowed where a backend quantises activations
/// to 8 bits. The rows here are normal numbers times weights of 1 ± 0.5, so the
/// largest of 256 lies 4 to 6 deviations out: steps of 6/127 with a rounding
/// error of 6/127/√12 = 1.4 % of a product. Measured: 1.7 % over one row of 256
/// products. Of a few products the norm of the errors scatters about that.
pub const QUANTISED_TOLERANCE: f32 = 1.7e-2;

/// One named output of an op.
struct Output {
    op: String,
    values: Vec<f32>,
    tolerance: f32,
}

/// What a comparison runs on.
#[derive(Clone, Debug)]
pub struct Case {
    /// Sizes.
    pub geometry: Geometry,
    /// Type of the large matrices.
    pub ty: GgmlType,
    /// Rows without the padding.
    pub n_rows: usize,
}

/// Two geometries: one whose widths are multiples of every block, one of odd
/// widths for the unquantised types.
pub fn geometries() -> [Geometry; 2] {
    let base = Geometry {
        n_vocab: 77,
        layers: vec![LayerKind::Csa, LayerKind::Hca],
        window: 24,
        max_context: 4096,
        expert_clamp: vec![0.9; 2],
        shared_clamp: vec![0.9; 2],
        n_hash_layers: 0,
        ..Geometry::flash()
    };
    let blocks = Geometry {
        n_embd: 512,
        n_heads: 6,
        head_dim: 128,
        q_rank: 256,
        n_out_groups: 3,
        out_rank: 85,
        n_index_heads: 5,
        index_dim: 128,
        index_top_k: 7,
        n_experts: 9,
        n_experts_used: 3,
        expert_dim: 256,
        ..base.clone()
    };
    let odd = Geometry {
        n_embd: 99,
        n_heads: 3,
        head_dim: 96,
        rope_dim: 32,
        q_rank: 37,
        n_out_groups: 1,
        out_rank: 19,
        n_index_heads: 3,
        index_dim: 64,
        index_top_k: 5,
        n_experts: 5,
        n_experts_used: 2,
        expert_dim: 45,
        n_sinkhorn: 3,
        ..base
    };
    [blocks, odd]
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let [blocks, odd] = geometries();
    let mut cases = Vec::new();
    for &n_rows in ROW_COUNTS {
        for &ty in WEIGHT_TYPES {
            // Every type at few and at many rows; the common ones at all.
            let common = [
                GgmlType::F16,
                GgmlType::Q8_0,
                GgmlType::IQ2_XXS,
                GgmlType::Q2_K,
            ];
            if common.contains(&ty) || [1, 3, 33].contains(&n_rows) {
                cases.push(Case {
                    geometry: blocks.clone(),
                    ty,
                    n_rows,
                });
            }
        }
        for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
            cases.push(Case {
                geometry: odd.clone(),
                ty,
                n_rows,
            });
        }
    }
    cases
}

/// Asserts that a backend computes every op, fused and not, as the reference
/// does, for every case.
pub fn every_op<B: Backend>(make: &dyn Fn(&Geometry) -> B) {
    for case in cases() {
        let rows = case.rows();
        let expected = run(&mut Reference::new(&case.geometry), &case, &rows);
        let fused = run(&mut make(&case.geometry), &case, &rows);
        let unfused = run(&mut Unfused(make(&case.geometry)), &case, &rows);
        for found in [&fused, &unfused] {
            for (found, expected) in found.iter().zip(&expected) {
                assert_same(&case, found, expected);
            }
        }
    }
}

fn assert_same(case: &Case, found: &Output, expected: &Output) {
    let what = format!(
        "{} ({}, {} rows, n_embd {})",
        found.op,
        case.ty.name(),
        case.n_rows,
        case.geometry.n_embd
    );
    assert_eq!(found.values.len(), expected.values.len(), "{what}");
    if expected.tolerance == 0.0 {
        for (i, (f, e)) in found.values.iter().zip(&expected.values).enumerate() {
            assert!(f == e, "{what}: value {i} is {f}, expected exactly {e}");
        }
        return;
    }
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    // The error of a product with quantised activations is relative to its terms:
    // a few products may all be near zero by chance, and their errors are not.
    // Rows and matrices here make products of about 1.
    let (floor, tolerance) = if expected.tolerance >= QUANTISED_TOLERANCE {
        let root = (expected.values.len() as f32).sqrt();
        (root, expected.tolerance * (1.0 + 2.0 / root))
    } else {
        (1e-20, expected.tolerance)
    };
    let error = norm(
        &mut found
            .values
            .iter()
            .zip(&expected.values)
            .map(|(f, e)| f - e),
    ) / norm(&mut expected.values.iter().copied()).max(floor);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:.3e}, tolerance {tolerance:.1e}"
    );
}

impl Case {
    /// Rows of four slots with a past, around the ends of ratio-4 and
    /// ratio-128 groups, and one row of padding.
    fn rows(&self) -> RowsImage {
        let frequencies = RopeFrequencies::new(&self.geometry);
        let mut rows = RowsImage::with_capacity(&self.geometry, self.n_rows + 1);
        // (slot, first position): the middle of a group, its last token, the
        // very beginning, and the last token of a ratio-128 group.
        let starts = [(2, 126), (0, 131), (3, 0), (1, 255)];
        let n_segments = starts.len().min(self.n_rows);
        let mut left = self.n_rows;
        for (i, (slot, first)) in starts.into_iter().take(n_segments).enumerate() {
            let n = if i + 1 == n_segments {
                left
            } else {
                left.div_ceil(2).min(left - (n_segments - 1 - i))
            };
            let tokens: Vec<u32> = (0..n)
                .map(|t| ((t * 31 + i) % self.geometry.n_vocab) as u32)
                .collect();
            rows.push_segment(&frequencies, slot, first, &tokens);
            left -= n;
        }
        rows.pad_to(self.n_rows + 1);
        rows
    }
}

/// Everything a run needs at hand: buffers are made, poisoned, filled and read
/// through it.
struct Bench<'a, B: Backend> {
    b: &'a mut B,
    image: &'a RowsImage,
    outputs: Vec<Output>,
}

const POISON: f32 = 1e30;
const N_SLOTS: usize = 4;

impl<B: Backend> Bench<'_, B> {
    fn n_rows(&self) -> usize {
        self.image.len()
    }

    fn fill(&mut self, shape: Shape, element: ElementType, values: &[f32]) -> B::Buffer {
        let mut buffer = self.b.alloc(element, shape).expect("a small buffer");
        let bytes: Vec<u8> = match element {
            ElementType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ElementType::Bf16 => values
                .iter()
                .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                .collect(),
            ElementType::U32 => values
                .iter()
                .flat_map(|x| (*x as u32).to_le_bytes())
                .collect(),
        };
        let per_slot = bytes.len() / shape.n_slots;
        for (slot, bytes) in bytes.chunks_exact(per_slot).enumerate() {
            self.b
                .write(&mut buffer, Place { slot, row: 0 }, bytes)
                .expect("written");
        }
        buffer
    }

    fn input(&mut self, width: usize, values: &[f32]) -> B::Buffer {
        let shape = Shape::rows(self.n_rows(), width);
        self.fill(shape, ElementType::F32, values)
    }

    fn random_input(&mut self, width: usize, random: &mut Random) -> B::Buffer {
        let values = random.normals(self.n_rows() * width, 1.0);
        self.input(width, &values)
    }

    fn poisoned(&mut self, width: usize) -> B::Buffer {
        let values = vec![POISON; self.n_rows() * width];
        self.input(width, &values)
    }

    fn upload(&mut self, role: WeightRole, tensor: Tensor) -> B::Weight {
        self.b.upload(role, tensor).expect("a small weight")
    }

    fn vector(&mut self, n: usize, random: &mut Random) -> B::Weight {
        let values: Vec<f32> = random.normals(n, 0.5).iter().map(|x| x + 1.0).collect();
        self.upload(
            WeightRole::Vector,
            float_tensor("v", GgmlType::F32, &[n], &values),
        )
    }

    fn matrix(
        &mut self,
        role: WeightRole,
        ty: GgmlType,
        ne: &[usize],
        random: &mut Random,
    ) -> B::Weight {
        let scale = (ne[0] as f32).powf(-0.5);
        self.upload(role, random_tensor("m", ty, ne, scale, random))
    }

    fn floats(&mut self, buffer: &B::Buffer, element: ElementType, shape: Shape) -> Vec<f32> {
        self.b.submit().expect("runs");
        let mut values = Vec::new();
        for slot in 0..shape.n_slots {
            let mut bytes = vec![0; shape.n_rows * shape.width * element.n_bytes()];
            self.b
                .read(buffer, Place { slot, row: 0 }, &mut bytes)
                .expect("read");
            match element {
                ElementType::F32 => values.extend(
                    bytes
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                ),
                ElementType::Bf16 => values.extend(
                    bytes
                        .chunks_exact(2)
                        .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
                ),
                ElementType::U32 => values.extend(
                    bytes
                        .chunks_exact(4)
                        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32),
                ),
            }
        }
        values
    }

    /// Records the real rows of an activation.
    fn record(
        &mut self,
        op: &str,
        buffer: &B::Buffer,
        element: ElementType,
        width: usize,
        tolerance: f32,
    ) {
        let n_real = self.n_rows() - 1;
        let mut values = self.floats(buffer, element, Shape::rows(self.n_rows(), width));
        values.truncate(n_real * width);
        self.outputs.push(Output {
            op: op.to_owned(),
            values,
            tolerance,
        });
    }

    fn record_f32(&mut self, op: &str, buffer: &B::Buffer, width: usize, tolerance: f32) {
        self.record(op, buffer, ElementType::F32, width, tolerance);
    }

    /// Records a whole cache: rows that no real row owns must not change.
    fn record_cache(&mut self, op: &str, buffer: &B::Buffer, element: ElementType, shape: Shape) {
        let values = self.floats(buffer, element, shape);
        self.outputs.push(Output {
            op: op.to_owned(),
            values,
            tolerance: 0.0,
        });
    }
}

fn slots(n_rows: usize, width: usize) -> Shape {
    Shape {
        n_slots: N_SLOTS,
        n_rows,
        width,
    }
}

/// Values that bf16 holds exactly.
fn bf16_values(n: usize, random: &mut Random) -> Vec<f32> {
    random
        .normals(n, 1.0)
        .into_iter()
        .map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
        .collect()
}

/// Runs every op once and returns what each wrote.
fn run<B: Backend>(b: &mut B, case: &Case, image: &RowsImage) -> Vec<Output> {
    let g = &case.geometry;
    let mut rows = b.alloc_rows(image.len()).expect("few rows");
    b.write_rows(&mut rows, image);
    let mut t = Bench {
        b,
        image,
        outputs: Vec::new(),
    };
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
    t.record_f32("hc_gates", &gates, g.n_gates(), SUM_TOLERANCE);

    let mut x = t.poisoned(g.n_embd);
    t.b.hc_pre(rows, &streams, &gates, &mut x);
    t.record_f32("hc_pre", &x, g.n_embd, SUM_TOLERANCE);

    let norm = t.vector(g.n_embd, random);
    let mut gates = t.poisoned(g.n_gates());
    let mut x = t.poisoned(g.n_embd);
    t.b.hc_pre_norm(rows, &streams, &hc, &norm, &mut gates, &mut x);
    t.record_f32("hc_pre_norm: gates", &gates, g.n_gates(), SUM_TOLERANCE);
    t.record_f32("hc_pre_norm", &x, g.n_embd, SUM_TOLERANCE);

    let y = t.random_input(g.n_embd, random);
    t.b.hc_post(rows, &y, &gates, &mut streams);
    t.record_f32("hc_post", &streams, width, SUM_TOLERANCE);

    let head = hyper_connection(t, g, g.n_hc, 1, random);
    let mut h = t.poisoned(g.n_embd);
    t.b.hc_head(rows, &streams, &head, &mut h);
    t.record_f32("hc_head", &h, g.n_embd, SUM_TOLERANCE);

    // Every other row goes through the head.
    let mut subset = RowsImage::with_capacity(g, t.n_rows());
    for row in (0..t.n_rows() - 1).step_by(2) {
        subset.push_from(t.image, row);
    }
    let mut selected = t.b.alloc_rows(subset.len()).expect("few rows");
    t.b.write_rows(&mut selected, &subset);
    let values = vec![POISON; t.n_rows() * width];
    let mut out = t.input(width, &values);
    t.b.select_rows(&selected, &streams, &mut out);
    t.record_f32("select_rows", &out, width, SUM_TOLERANCE);
}

fn matrix_tolerance(ty: GgmlType) -> f32 {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => SUM_TOLERANCE,
        _ => QUANTISED_TOLERANCE,
    }
}

fn dense<B: Backend>(
    t: &mut Bench<'_, B>,
    g: &Geometry,
    ty: GgmlType,
    rows: &B::Rows,
    random: &mut Random,
) {
    let norm = t.vector(g.n_embd, random);
    let mut x = t.random_input(g.n_embd, random);
    t.b.rms_norm(rows, &norm, &mut x);
    t.record_f32("rms_norm", &x, g.n_embd, SUM_TOLERANCE);

    for n_out in [g.q_rank, 1, 67] {
        let w = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, n_out], random);
        let mut out = t.poisoned(n_out);
        t.b.matmul(rows, &w, &x, &mut out);
        t.record_f32("matmul", &out, n_out, matrix_tolerance(ty));
    }
    // Activations of a precise matrix are not quantised, whatever its type.
    let w = t.matrix(WeightRole::PreciseMatrix, ty, &[g.n_embd, 24], random);
    let mut out = t.poisoned(24);
    t.b.matmul(rows, &w, &x, &mut out);
    t.record_f32("matmul, precise", &out, 24, SUM_TOLERANCE);

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
    t.record_f32("matmuls: first", &out_a, 33, matrix_tolerance(ty));
    t.record_f32("matmuls: precise", &out_p, 16, SUM_TOLERANCE);
    t.record_f32("matmuls: last", &out_c, 8, matrix_tolerance(ty));

    let n_out = g.n_out_groups * g.out_rank;
    let w = t.matrix(WeightRole::Matrix, ty, &[g.group_dim(), n_out], random);
    let o = t.random_input(g.n_heads * g.head_dim, random);
    let mut u = t.poisoned(n_out);
    t.b.matmul_grouped(rows, &w, &o, &mut u);
    t.record_f32("matmul_grouped", &u, n_out, matrix_tolerance(ty));

    let y = t.random_input(g.n_embd, random);
    t.b.add(rows, &y, &mut x);
    t.record_f32("add", &x, g.n_embd, SUM_TOLERANCE);
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
    t.record_f32("head_norm", &q, q_width, SUM_TOLERANCE);
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
            t.record_f32("rope", &q, q_width, SUM_TOLERANCE);
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
    t.record_f32("rope of index heads", &iq, index_width, SUM_TOLERANCE);

    let mut q = t.random_input(q_width, random);
    t.b.q_norm_rope(rows, RopeTable::Compressed, &mut q);
    t.record_f32("q_norm_rope", &q, q_width, SUM_TOLERANCE);

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
    t.record_f32("kv_norm_rope", &kv, g.head_dim, SUM_TOLERANCE);
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
        t.record_f32("add_position_bias", &gate, dim, SUM_TOLERANCE);
        t.b.pool(rows, kind, &kv, &gate, &frontier, &mut pooled);
        t.record_f32("pool", &pooled, row_dim, SUM_TOLERANCE);

        let cache_shape = slots(400 / ratio, row_dim);
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
            t.b.compress(
                rows,
                &compressor,
                rounded,
                &kv,
                &mut gate,
                &mut pooled,
                &mut frontier,
                &mut cache,
            );
            let values = t.floats(&cache, element, cache_shape);
            // As above: a rounded value may lie one step away, 1/2 to 1/4 of
            // itself for E2M1.
            let tolerance = if !rounded { SUM_TOLERANCE } else { 3e-2 };
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
    let iq = t.random_input(width, random);
    let weights = t.random_input(g.n_index_heads, random);
    let shape = slots(100, g.index_dim);
    let keys = bf16_values(shape.len(), random);
    let cache = t.fill(shape, ElementType::Bf16, &keys);
    let n_rows = t.n_rows();

    // Scores of a block of rows in the middle, then all rows block by block.
    let range = n_rows / 3..n_rows - 1;
    let shape = Shape::rows(range.len(), 100);
    let mut scores = t.fill(shape, ElementType::F32, &vec![0.0; shape.len()]);
    t.b.index_scores(rows, range.clone(), &iq, &weights, &cache, &mut scores);
    let values = t.floats(&scores, ElementType::F32, shape);
    // Only visible scores are defined.
    let visible = values
        .chunks(100)
        .zip(range)
        .flat_map(|(row, r)| row[..t.image.n_visible(r, 4)].to_vec())
        .collect();
    t.outputs.push(Output {
        op: "index_scores".to_owned(),
        values: visible,
        tolerance: SUM_TOLERANCE,
    });

    // Scores with many ties.
    let shape = Shape::rows(n_rows, 100);
    let ties: Vec<f32> = (0..shape.len())
        .map(|_| random.below(12) as f32 - 5.0)
        .collect();
    let scores = t.fill(shape, ElementType::F32, &ties);
    let selected_shape = Shape::rows(n_rows, g.index_top_k);
    let poison = vec![77.0; selected_shape.len()];
    let mut selected = t.fill(selected_shape, ElementType::U32, &poison);
    t.b.top_k(rows, 0..n_rows, &scores, &mut selected);
    record_selected(t, g, "top_k", &selected);

    let mut scores = t.fill(Shape::rows(3, 100), ElementType::F32, &[0.0; 300]);
    let mut selected = t.fill(selected_shape, ElementType::U32, &poison);
    t.b.index_select(
        rows,
        n_rows,
        3,
        &iq,
        &weights,
        &cache,
        &mut scores,
        &mut selected,
    );
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
        let cache_shape = slots(110, g.head_dim);
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
            t.b.attend(rows, &q, &kv, &ring, compressed, &sinks, &mut out);
            t.record_f32(op, &out, width, SUM_TOLERANCE);
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
    t.record_f32("router_scores", &scores, e, SUM_TOLERANCE);

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
    t.record_f32("route_hash: weights", &routes.weights, k, SUM_TOLERANCE);
    t.b.route_top_k(rows, &bias, &scores, &mut routes);
    t.record("route_top_k", &routes.experts, ElementType::U32, k, 0.0);
    t.record_f32("route_top_k: weights", &routes.weights, k, SUM_TOLERANCE);

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
    t.b.experts_gate_up(rows, &gate, &up, 0.9, &x, &routes, &mut hidden);
    let tolerance = 2.0 * matrix_tolerance(ty);
    t.record_f32("experts_gate_up", &hidden, k * g.expert_dim, tolerance);
    let hidden = t.random_input(k * g.expert_dim, random);
    let mut y = t.poisoned(g.n_embd);
    t.b.experts_down(rows, &down, &hidden, &routes, &mut y);
    t.record_f32("experts_down", &y, g.n_embd, matrix_tolerance(ty));

    let gate = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, g.expert_dim], random);
    let up = t.matrix(WeightRole::Matrix, ty, &[g.n_embd, g.expert_dim], random);
    let mut hidden = t.poisoned(g.expert_dim);
    t.b.gate_up(rows, &gate, &up, 0.9, &x, &mut hidden);
    t.record_f32("gate_up", &hidden, g.expert_dim, tolerance);
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
