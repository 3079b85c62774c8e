use ds4_formats::small_float::bf16_from_f32;

use super::*;
use crate::path::{Cpu, Path};

fn cpus() -> impl Iterator<Item = (Path, Cpu)> {
    Path::ALL
        .into_iter()
        .filter_map(|path| Some((path, Cpu::new(path)?)))
}

/// Applies `f` to `x` on a path, sixteen values at a time.
macro_rules! apply {
    ($cpu:expr, $x:expr, |$s:ident, $v:ident| $body:expr) => {{
        #[inline(always)]
        fn all<S: Simd>($s: S, x: &mut [f32]) {
            map!($s, x, |$v| $body);
        }
        let mut x: Vec<f32> = $x.to_vec();
        let values = &mut x;
        dispatch!($cpu, all(values: &mut [f32]));
        x
    }};
}

/// Distance from `exact` in units of the last place of the nearest f32.
fn error_in_ulps(found: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    if found == nearest {
        return 0.0;
    }
    let next = f32::from_bits(nearest.abs().to_bits() + 1);
    (f64::from(found) - exact).abs() / (f64::from(next) - f64::from(nearest.abs()))
}

fn largest_error(x: &[f32], found: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f32) {
    let errors = x
        .iter()
        .zip(found)
        .map(|(x, found)| (error_in_ulps(*found, exact(f64::from(*x))), *x));
    errors.fold((0.0, 0.0), |m, e| if e.0 > m.0 { e } else { m })
}

#[test]
fn exp_is_within_two_units_of_f64_and_saturates() {
    let x: Vec<f32> = (-880_000..=887_200).map(|i| i as f32 * 1e-4).collect();
    let small: Vec<f32> = (0..60_000)
        .map(|i| f32::from_bits(0x2000_0000 + i * 8192))
        .filter(|x| *x < 80.0)
        .flat_map(|x| [x, -x])
        .collect();
    for (path, cpu) in cpus() {
        for x in [&x, &small] {
            let (error, at) = largest_error(x, &apply!(cpu, x, |s, v| s.exp(v)), f64::exp);
            println!("{path}: exp is off by {error:.3} units at {at}");
            assert!(error <= 2.0, "{path}: exp({at}) is off by {error} units");
        }
        let far = [-104.5, -1e4, f32::NEG_INFINITY, 89.0, 1e9, f32::INFINITY];
        let found = apply!(cpu, far, |s, v| s.exp(v));
        assert_eq!(found[..3], [0.0; 3], "{path}: far below");
        assert_eq!(found[3..], [f32::INFINITY; 3], "{path}: far above");
    }
}

#[test]
fn ln_1p_is_within_two_units_of_f64_from_0_to_1() {
    let x: Vec<f32> = (0..=1_000_000)
        .map(|i| i as f32 * 1e-6)
        .chain((0..500).map(|i| f32::from_bits(0x0080_0000 + i * 0x10_0000)))
        .filter(|x| *x <= 1.0)
        .collect();
    for (path, cpu) in cpus() {
        let found = apply!(cpu, x, |s, v| s.ln_1p_unit(v));
        let (error, at) = largest_error(&x, &found, f64::ln_1p);
        println!("{path}: ln_1p is off by {error:.3} units at {at}");
        assert!(error <= 2.0, "{path}: ln_1p({at}) is off by {error} units");
    }
}

#[test]
fn elementwise_instructions_are_those_of_scalars() {
    let x: Vec<f32> = (0..2000)
        .map(|i| (i as f32 - 1000.0) * 0.37 * 10f32.powi(i % 7 - 3))
        .collect();
    for (path, cpu) in cpus() {
        let check = |what: &str, found: Vec<f32>, expected: &dyn Fn(f32) -> f32| {
            for (x, found) in x.iter().zip(found) {
                assert_eq!(found, expected(*x), "{path}: {what} of {x}");
            }
        };
        check("abs", apply!(cpu, x, |s, v| s.abs(v)), &f32::abs);
        check(
            "round",
            apply!(cpu, x, |s, v| s.round(v)),
            &f32::round_ties_even,
        );
        check(
            "sqrt of abs",
            apply!(cpu, x, |s, v| s.sqrt(s.abs(v))),
            &|x| x.abs().sqrt(),
        );
        check("exponent", apply!(cpu, x, |s, v| s.exponent(v)), &|x| {
            f32::from_bits(x.to_bits() & 0x7f80_0000)
        });
        check("min", apply!(cpu, x, |s, v| s.min(v, s.splat(3.0))), &|x| {
            x.min(3.0)
        });
        check("max", apply!(cpu, x, |s, v| s.max(v, s.splat(3.0))), &|x| {
            x.max(3.0)
        });
        check(
            "arithmetic",
            apply!(cpu, x, |s, v| s
                .div(s.sub(s.add(v, v), s.splat(1.0)), s.mul(v, v))),
            &|x| (x + x - 1.0) / (x * x),
        );
        let n: Vec<f32> = (-126..=127).map(|n| n as f32).collect();
        for (n, found) in n.iter().zip(apply!(cpu, n, |s, v| s.exp2(v))) {
            assert_eq!(found, n.exp2(), "{path}: 2^{n}");
        }
        let nan = [f32::NAN; 3];
        let found = apply!(cpu, nan, |s, v| s.max(v, s.splat(1.0)));
        assert_eq!(found, [1.0; 3], "{path}: the other value stands for NaN");
        let found = apply!(cpu, nan, |s, v| s.min(v, s.splat(1.0)));
        assert_eq!(found, [1.0; 3], "{path}: the other value stands for NaN");
    }
}

#[test]
fn bf16_loads_exactly_and_stores_to_nearest_even() {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &Lanes<u16>) -> Lanes {
        let mut out = [0.0; LANES];
        s.store(s.load_bf16(x), &mut out);
        out
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &Lanes) -> Lanes<u16> {
        let mut out = [0; LANES];
        s.store_bf16(s.load(x), &mut out);
        out
    }
    #[inline(always)]
    fn pairs<S: Simd>(s: S, x: &[u16; 32]) -> (Lanes, Lanes) {
        let (a, b) = s.split_bf16(s.load_pairs(x));
        let mut out = ([0.0; LANES], [0.0; LANES]);
        s.store(a, &mut out.0);
        s.store(b, &mut out.1);
        out
    }
    for (path, cpu) in cpus() {
        for start in (0..=0xfff0u16).step_by(LANES) {
            let codes: Lanes<u16> = std::array::from_fn(|i| start + i as u16);
            let codes = &codes;
            let floats = dispatch!(cpu, load(codes: &Lanes<u16>) -> Lanes);
            for i in 0..LANES {
                let bits = u32::from(codes[i]) << 16;
                assert_eq!(floats[i].to_bits(), bits, "{path}: bf16 {:x}", codes[i]);
            }
            // Below, at and above the tie after each code.
            for low in [0x7fff, 0x8000, 0x8001, 0] {
                let x = floats.map(|x| f32::from_bits(x.to_bits() | low));
                let x = &x;
                let found = dispatch!(cpu, store(x: &Lanes) -> Lanes<u16>);
                for i in 0..LANES {
                    let expected = bf16_from_f32(x[i]);
                    let is_nan = f32::from_bits(u32::from(found[i]) << 16).is_nan();
                    assert!(
                        found[i] == expected || (x[i].is_nan() && is_nan),
                        "{path}: {:x} rounds to {:x}, not {expected:x}",
                        x[i].to_bits(),
                        found[i]
                    );
                }
            }
        }
        let codes: [u16; 32] = std::array::from_fn(|i| 0x3f80 + 7 * i as u16);
        let codes = &codes;
        let (even, odd) = dispatch!(cpu, pairs(codes: &[u16; 32]) -> (Lanes, Lanes));
        for i in 0..LANES {
            assert_eq!(even[i].to_bits() >> 16, u32::from(codes[2 * i]), "{path}");
            assert_eq!(
                odd[i].to_bits() >> 16,
                u32::from(codes[2 * i + 1]),
                "{path}"
            );
        }
    }
}

#[test]
fn lanes_are_summed_compared_and_transposed_in_order() {
    #[inline(always)]
    fn sum<S: Simd>(s: S, x: &Lanes) -> (f32, f32) {
        (s.sum(s.load(x)), s.largest(s.load(x)))
    }
    #[inline(always)]
    fn transpose<S: Simd>(s: S, x: &mut [Lanes; LANES]) {
        let rows = x.map(|row| s.load(&row));
        for (row, out) in s.transpose(rows).into_iter().zip(x) {
            s.store(row, out);
        }
    }
    for (path, cpu) in cpus() {
        // Magnitudes that make every other order of the sum visible.
        let x: Lanes = std::array::from_fn(|i| 3f32.powi(i as i32 * 5 % 16) * 1.1);
        let x = &x;
        let (sum, largest) = dispatch!(cpu, sum(x: &Lanes) -> (f32, f32));
        assert_eq!(sum, Scalar.sum(*x), "{path}");
        assert_eq!(largest, 3f32.powi(15) * 1.1, "{path}");

        let mut square: [Lanes; LANES] =
            std::array::from_fn(|i| std::array::from_fn(|j| (i * LANES + j) as f32));
        let rows = &mut square;
        dispatch!(cpu, transpose(rows: &mut [Lanes; LANES]));
        for i in 0..LANES {
            for j in 0..LANES {
                assert_eq!(square[i][j], (j * LANES + i) as f32, "{path}: {i}, {j}");
            }
        }
    }
}

#[test]
fn sums_of_any_length_see_every_element_once() {
    #[inline(always)]
    fn both<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
        (s.sum_squares(x), s.largest_magnitude(x))
    }
    for (path, cpu) in cpus() {
        for len in (0..200).chain([511, 512, 513]) {
            let x: Vec<f32> = (0..len).map(|i| (i % 13) as f32 - 6.0).collect();
            let x = &x[..];
            let (sum, largest) = dispatch!(cpu, both(x: &[f32]) -> (f32, f32));
            let expected: f32 = x.iter().map(|x| x * x).sum();
            assert_eq!(sum, expected, "{path}: {len} squares");
            let expected = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert_eq!(largest, expected, "{path}: {len} magnitudes");
        }
    }
}

#[test]
fn bytes_are_stored_when_they_are_whole_and_multiplied_exactly() {
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &Lanes) -> (bool, Lanes<u8>) {
        let mut out = [0; LANES];
        (s.store_bytes(s.load(x), &mut out), out)
    }
    #[inline(always)]
    fn dot<S: Simd>(s: S, x: &Lanes<[i8; 4]>, y: [i8; 4]) -> Lanes {
        let x = x.map(|x| x.map(|x| (x as u8).wrapping_add(S::BYTE_BIAS)));
        let start = -i32::from(S::BYTE_BIAS) * y.iter().map(|y| i32::from(*y)).sum::<i32>();
        let mut out = [0.0; LANES];
        let sum = s.dot_bytes(s.splat_int(start), &x, y.map(|y| y as u8));
        s.store(s.float(sum), &mut out);
        out
    }
    for (path, cpu) in cpus() {
        for start in (-127..=112).step_by(8) {
            let whole: Lanes = std::array::from_fn(|i| (start + i as i32) as f32);
            let x = &whole;
            let (exact, bytes) = dispatch!(cpu, store(x: &Lanes) -> (bool, Lanes<u8>));
            assert!(exact, "{path}: {whole:?}");
            assert_eq!(bytes.map(|b| f32::from(b as i8)), whole, "{path}");
            for other in [0.5, -3.25, 128.0, -129.0, 1e20, f32::NAN] {
                let mut mixed = whole;
                mixed[start.unsigned_abs() as usize % LANES] = other;
                let x = &mixed;
                let (exact, _) = dispatch!(cpu, store(x: &Lanes) -> (bool, Lanes<u8>));
                assert!(!exact, "{path}: {other} is not a byte");
            }
            let x: Lanes<[i8; 4]> = std::array::from_fn(|i| {
                [127, -127, start as i8, 3 * i as i8].map(|x| if i % 3 == 0 { -x } else { x })
            });
            let (x, y) = (&x, [127, -127, 5, start as i8]);
            let found = dispatch!(cpu, dot(x: &Lanes<[i8; 4]>, y: [i8; 4]) -> Lanes);
            for i in 0..LANES {
                let expected: i32 = (0..4).map(|k| i32::from(x[i][k]) * i32::from(y[k])).sum();
                assert_eq!(found[i], expected as f32, "{path}: {:?} and {y:?}", x[i]);
            }
        }
    }
}
