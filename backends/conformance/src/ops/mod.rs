//! Every op against the reference, at awkward shapes.
//!
//! A case is a geometry, a set of rows of several slots (some in the middle of
//! a group, some completing one, one of padding) and a weight type. All ops run
//! on the same random inputs on both backends; outputs are poisoned first, so
//! that a row that is not written is seen.

mod bench;
mod groups;

use std::time::Instant;

use ds4_formats::GgmlType;
use ds4_model::{
    Backend, Geometry, LayerKind, Reference, RopeFrequencies, RowsImage, SegmentPlace, Unfused,
    Visibility,
};

use bench::Output;
use groups::{run, run_choice};

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

/// Relative errors (of the norm) that a backend is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Sums of f32 in another order: norms, gates, precise matrices.
    pub sums: f32,
    /// Products of unquantised matrices, and attention: as `sums`, or those of one pass
    /// of 16-bit tensor cores with f32 sums.
    pub products: f32,
    /// Where activations are quantised to 8 bits. The rows here are normal numbers
    /// times weights of 1 ± 0.5, so the largest of 256 lies 4 to 6 deviations out:
    /// steps of 6/127 with a rounding error of 6/127/√12 = 1.4 % of a product.
    /// Measured: 1.7 % over one row of 256 products. Of a few products the norm of the
    /// errors scatters about that.
    pub quantised: f32,
    /// Absolute difference of the logits of whole networks between steps that cut or
    /// mix the same rows otherwise; 0 where a row gives the same bits in any step.
    pub logits: f32,
}

impl Tolerance {
    /// Of a backend that multiplies in f32 or in 8 bits, the same bits for a row in any
    /// step.
    pub const F32: Tolerance = Tolerance {
        sums: 2e-5,
        products: 2e-5,
        quantised: 1.7e-2,
        logits: 0.0,
    };

    /// Of a backend with one pass of f16 or bf16 products. A bf16 operand is off by at
    /// most 2^-9, evenly spread: 2^-9 / √3 = 1.1e-3 of a product for each of the two.
    pub const HALF: Tolerance = Tolerance {
        products: 3e-3,
        logits: 5e-2,
        ..Tolerance::F32
    };
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
/// does, for every case; prints the time of each case when asked.
pub fn every_op<B: Backend>(make: &dyn Fn(&Geometry) -> B, tolerance: &Tolerance, times: bool) {
    for case in cases() {
        let started = Instant::now();
        let rows = case.rows();
        let reference = Reference::new(&case.geometry);
        let expected = run(&mut { reference }, &case, &rows, tolerance);
        let asked = Instant::now();
        let fused = run(&mut make(&case.geometry), &case, &rows, tolerance);
        let ran = asked.elapsed();
        let unfused = run(&mut Unfused(make(&case.geometry)), &case, &rows, tolerance);
        for found in [&fused, &unfused] {
            for (found, expected) in found.iter().zip(&expected) {
                assert_same(&case, found, expected, tolerance);
            }
        }
        if times {
            println!("{case}: {ran:.1?} of {:.1?}", started.elapsed());
        }
    }
    for n_vocab in [77, 256, 1000, 20_001] {
        for (n_rows, ties) in [(1, false), (3, true), (5, false)] {
            let [_, odd] = geometries();
            let case = Case {
                geometry: Geometry { n_vocab, ..odd },
                ty: GgmlType::F32,
                n_rows,
            };
            let (g, rows) = (&case.geometry, case.rows());
            let expected = run_choice(&mut Reference::new(g), g, &rows, tolerance, ties);
            let found = run_choice(&mut make(g), g, &rows, tolerance, ties);
            for (found, expected) in found.iter().zip(&expected) {
                assert_same(&case, found, expected, tolerance);
            }
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ty, n_embd) = (self.ty.name(), self.geometry.n_embd);
        write!(f, "{ty}, {} rows, n_embd {n_embd}", self.n_rows)
    }
}

/// What a backend's output of an op is beside the reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The op.
    pub op: String,
    /// The relative error, or where every bit has to be the same the number of values that differ.
    pub error: f32,
    /// The largest that is right; 0 where every bit has to be the same.
    pub allowed: f32,
}

impl Compared {
    fn of(found: &Output, expected: &Output, allowed: &Tolerance) -> Compared {
        let pairs = || found.values.iter().zip(&expected.values);
        let compared = |error, allowed| Compared {
            op: expected.op.clone(),
            error,
            allowed,
        };
        if expected.tolerance == 0.0 {
            let n_others = pairs().filter(|(f, e)| f != e).count();
            return compared(n_others as f32, 0.0);
        }
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        // The error of a product with quantised activations is relative to its terms:
        // a few products may all be near zero by chance, and their errors are not.
        // Rows and matrices here make products of about 1.
        let (floor, tolerance) = if expected.tolerance >= allowed.quantised {
            let root = (expected.values.len() as f32).sqrt();
            (root, expected.tolerance * (1.0 + 2.0 / root))
        } else {
            (1e-20, expected.tolerance)
        };
        let error = norm(&mut pairs().map(|(f, e)| f - e))
            / norm(&mut expected.values.iter().copied()).max(floor);
        compared(error, tolerance)
    }

    /// Whether it is close enough; what is no number is not.
    pub fn is_right(&self) -> bool {
        self.error <= self.allowed
    }
}

/// Runs every op of a case on a backend, and says how far each output is from the reference's.
///
/// # Panics
/// When the backend fails, or writes where it should not.
pub fn compare<B: Backend>(backend: &mut B, case: &Case, tolerance: &Tolerance) -> Vec<Compared> {
    let rows = case.rows();
    let mut reference = Reference::new(&case.geometry);
    let expected = run(&mut reference, case, &rows, tolerance);
    let found = run(backend, case, &rows, tolerance);
    let pairs = found.iter().zip(&expected);
    pairs.map(|(f, e)| Compared::of(f, e, tolerance)).collect()
}

/// The types of the published mixes at the widths of Flash, at one row and at several; of the
/// vocabulary and of the 256 experts there are as many as a test has time for.
pub fn flash_cases() -> Vec<Case> {
    let geometry = Geometry {
        n_vocab: 1000,
        layers: vec![LayerKind::Csa, LayerKind::Hca],
        max_context: 4096,
        n_experts: 8,
        n_hash_layers: 0,
        expert_clamp: vec![10.0; 2],
        shared_clamp: vec![10.0; 2],
        ..Geometry::flash()
    };
    let types = [
        GgmlType::Q8_0,
        GgmlType::IQ2_XXS,
        GgmlType::Q2_K,
        GgmlType::Q4_K,
        GgmlType::MXFP4,
    ];
    let case = |ty, n_rows| Case {
        geometry: geometry.clone(),
        ty,
        n_rows,
    };
    let of_type = |ty| [case(ty, 1), case(ty, 5)];
    types.into_iter().flat_map(of_type).collect()
}

fn assert_same(case: &Case, found: &Output, expected: &Output, allowed: &Tolerance) {
    let what = format!("{} ({case})", found.op);
    assert_eq!(found.values.len(), expected.values.len(), "{what}");
    if expected.tolerance == 0.0 {
        for (i, (f, e)) in found.values.iter().zip(&expected.values).enumerate() {
            assert!(f == e, "{what}: value {i} is {f}, expected exactly {e}");
        }
        return;
    }
    let compared = Compared::of(found, expected, allowed);
    assert!(
        compared.is_right(),
        "{what}: relative error {:.3e}, tolerance {:.1e}",
        compared.error,
        compared.allowed
    );
}

impl Case {
    /// Rows of four slots with a past, around the ends of ratio-4 and
    /// ratio-128 groups, and one row of padding.
    fn rows(&self) -> RowsImage {
        let frequencies = RopeFrequencies::new(&self.geometry);
        let mut rows = RowsImage::with_capacity(&self.geometry, self.n_rows + 1, true);
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
            let place = SegmentPlace {
                slot,
                base: bench::base(slot),
                first_position: first,
                visibility: match i {
                    2 => Visibility::Block,
                    _ => Visibility::Causal,
                },
            };
            rows.push_segment(&frequencies, place, &tokens);
            left -= n;
        }
        rows.pad_to(self.n_rows + 1);
        rows
    }
}
