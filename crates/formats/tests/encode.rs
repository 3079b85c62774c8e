//! Encoders: how far what they write decodes from what they were given.

use ds4_formats::GgmlType;
use ds4_formats::quant::{decode_row, encode_row};
use proptest::prelude::*;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.max(1e-300).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Student's distribution with four degrees of freedom.
    fn heavy(&mut self) -> f64 {
        let chi: f64 = (0..4).map(|_| self.normal().powi(2)).sum();
        self.normal() / (chi / 4.0).sqrt()
    }
}

const N: usize = 4096;

fn normal(seed: u64) -> Vec<f32> {
    let mut dice = Dice(seed);
    (0..N).map(|_| (0.02 * dice.normal()) as f32).collect()
}

fn heavy(seed: u64) -> Vec<f32> {
    let mut dice = Dice(seed);
    (0..N).map(|_| (0.02 * dice.heavy()) as f32).collect()
}

/// Importances over several orders of magnitude.
fn weights(seed: u64) -> Vec<f32> {
    let mut dice = Dice(seed);
    (0..N).map(|_| dice.normal().exp() as f32).collect()
}

fn encoders() -> impl Iterator<Item = GgmlType> {
    let all = GgmlType::all().iter().copied();
    all.filter(|ty| *ty != GgmlType::I32)
}

fn round_trip(ty: GgmlType, x: &[f32], w: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0; ty.row_bytes(x.len()).expect("whole blocks")];
    encode_row(ty, x, w, &mut bytes);
    let mut y = vec![0.0; x.len()];
    decode_row(ty, &bytes, &mut y);
    y
}

/// Weighted squared error, as a share of the weighted squares.
fn share(x: &[f32], y: &[f32], w: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(|i| f64::from(w[i]) * f(i)).sum::<f64>();
    let error = sum(&|i| f64::from(x[i] - y[i]).powi(2));
    error / sum(&|i| f64::from(x[i]).powi(2))
}

/// The errors of each type in thousandths of the squares: normal numbers, heavy-tailed ones, and
/// heavy-tailed ones with weights.
const ERRORS: &[(GgmlType, [f64; 3])] = &[
    (GgmlType::Q8_0, [0.029, 0.044, 0.046]),
    (GgmlType::Q2_K, [69.316, 82.463, 62.796]),
    (GgmlType::Q3_K, [20.940, 28.344, 24.823]),
    (GgmlType::Q4_K, [4.915, 6.529, 5.672]),
    (GgmlType::Q5_K, [1.194, 1.601, 1.367]),
    (GgmlType::Q6_K, [0.286, 0.408, 0.339]),
    (GgmlType::IQ2_XXS, [107.503, 125.681, 92.867]),
    (GgmlType::IQ2_XS, [80.819, 93.304, 68.073]),
    (GgmlType::IQ3_XXS, [31.209, 35.895, 25.139]),
    (GgmlType::IQ1_S, [202.299, 250.485, 206.682]),
    (GgmlType::IQ4_NL, [5.531, 7.018, 6.382]),
    (GgmlType::IQ3_S, [16.840, 21.195, 15.877]),
    (GgmlType::IQ2_S, [57.308, 74.863, 57.923]),
    (GgmlType::IQ4_XS, [5.606, 7.113, 6.465]),
    (GgmlType::IQ1_M, [173.775, 203.612, 156.698]),
    (GgmlType::MXFP4, [12.456, 15.441, 16.409]),
];

#[test]
fn every_type_loses_no_more_than_it_did() {
    let ones = vec![1.0; N];
    let w = weights(3);
    let mut found = Vec::new();
    for ty in encoders().filter(|ty| ty.block_len() > 1) {
        let (x, h) = (normal(1), heavy(2));
        found.push((
            ty,
            [
                1e3 * share(&x, &round_trip(ty, &x, None), &ones),
                1e3 * share(&h, &round_trip(ty, &h, None), &ones),
                1e3 * share(&h, &round_trip(ty, &h, Some(&w)), &w),
            ],
        ));
    }
    let table = || {
        let row = |(ty, e): &(GgmlType, [f64; 3])| {
            format!(
                "    (GgmlType::{ty}, [{:.3}, {:.3}, {:.3}]),\n",
                e[0], e[1], e[2]
            )
        };
        found.iter().map(row).collect::<String>()
    };
    assert_eq!(found.len(), ERRORS.len(), "{}", table());
    for ((ty, found), (name, expected)) in found.iter().zip(ERRORS) {
        assert_eq!(ty, name);
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                *found <= expected * 1.01 + 0.001,
                "{ty}: {found} > {expected}\n{}",
                table()
            );
        }
    }
}

#[test]
fn weights_move_the_error_to_where_it_matters_less() {
    let (x, w) = (heavy(4), weights(5));
    for ty in encoders().filter(|ty| ty.block_len() > 1 && *ty != GgmlType::Q8_0) {
        let with = share(&x, &round_trip(ty, &x, Some(&w)), &w);
        let without = share(&x, &round_trip(ty, &x, None), &w);
        assert!(with < without, "{ty}: {with} {without}");
    }
}

#[test]
fn useless_weights_count_as_none() {
    let x = normal(6);
    for ty in encoders() {
        let expected = round_trip(ty, &x, None);
        for useless in [0.0, f32::INFINITY, f32::NAN] {
            assert_eq!(
                round_trip(ty, &x, Some(&vec![useless; N])),
                expected,
                "{ty}"
            );
        }
    }
}

#[test]
fn what_mxfp4_and_the_plain_types_can_say_they_say_exactly() {
    let mut dice = Dice(7);
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let x: Vec<f32> = (0..N)
        .map(|i| {
            let scale = ((i / 32 % 40) as f32 - 30.0).exp2();
            let sign = if dice.uniform() < 0.5 { -1.0 } else { 1.0 };
            sign * scale * levels[(8.0 * dice.uniform()) as usize]
        })
        .collect();
    for ty in [GgmlType::MXFP4, GgmlType::BF16, GgmlType::F32] {
        assert_eq!(round_trip(ty, &x, None), x, "{ty}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_is_finite_stays_finite_and_in_range(
        seed in 1u64..u64::MAX,
        exponent in -40i32..15,
        shape in 0usize..5,
    ) {
        let mut dice = Dice(seed);
        let scale = 2.0f64.powi(exponent);
        let x: Vec<f32> = (0..512)
            .map(|i| {
                let x = match shape {
                    0 => dice.normal(),
                    1 => 1.0,
                    2 => -1.0,
                    3 => if i % 256 == 17 { -100.0 } else { 0.0 },
                    _ => if i % 32 < 16 { 0.0 } else { dice.heavy() },
                };
                (x * scale) as f32
            })
            .collect();
        let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        for ty in encoders() {
            if largest > 60000.0 && ty == GgmlType::F16 {
                continue;
            }
            for w in [None, Some(&weights(seed)[..512])] {
                let y = round_trip(ty, &x, w);
                for (x, y) in x.iter().zip(&y) {
                    prop_assert!(y.is_finite() && y.abs() <= 3.0 * largest + 1e-7, "{ty}: {x} {y}");
                }
            }
        }
    }
}
