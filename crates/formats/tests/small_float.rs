//! The small floats, over all their codes.

use ds4_formats::small_float::*;

/// The code whose value is nearest to `x`, ties to the even code, by looking at all of them.
/// `codes` are the magnitudes in order from zero.
fn nearest(codes: impl Iterator<Item = (u8, f64)>, x: f64) -> u8 {
    // Far beyond the range all distances would round to the same f64.
    let x = x.abs().min(1000.0);
    let mut best = (u8::MAX, f64::INFINITY);
    for (code, value) in codes {
        let distance = (value - x).abs();
        if distance < best.1 || (distance == best.1 && code % 2 == 0) {
            best = (code, distance);
        }
    }
    best.0
}

/// Every BF16 number, and around every midpoint of two neighbours among `values` the three floats
/// where a rounding mistake would show.
fn awkward_inputs(values: &[f32]) -> Vec<f32> {
    let mut inputs: Vec<f32> = (0..=u16::MAX)
        .map(bf16_to_f32)
        .filter(|x| x.is_finite())
        .collect();
    for pair in values.windows(2) {
        let middle = (pair[0] + pair[1]) / 2.0;
        for x in [
            middle.next_down(),
            middle,
            middle.next_up(),
            pair[0].next_up(),
        ] {
            inputs.extend([x, -x]);
        }
    }
    inputs
}

#[test]
fn e4m3_codes_have_the_values_of_the_format() {
    for code in 0..=255u8 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let expected = match exponent {
            15 if fraction == 7.0 => f64::NAN,
            0 => fraction / 8.0 * 2f64.powi(-6),
            _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
        };
        let expected = if code < 128 { expected } else { -expected };
        let found = f64::from(e4m3_to_f32(code));
        assert!(
            found == expected || (found.is_nan() && expected.is_nan()),
            "{code:#04x}: {found}"
        );
        assert_eq!(found.is_sign_negative(), code >= 128, "{code:#04x}");
        assert_eq!(
            f32_to_e4m3(e4m3_to_f32(code)),
            code,
            "{code:#04x} does not come back"
        );
    }
    assert_eq!(e4m3_to_f32(0x7e), E4M3_MAX);
}

#[test]
fn e4m3_rounds_to_nearest_with_ties_to_even_and_saturates() {
    let values: Vec<f32> = (0..=0x7e).map(e4m3_to_f32).collect();
    for x in awkward_inputs(&values) {
        let codes = (0..=0x7e).map(|code| (code, f64::from(e4m3_to_f32(code))));
        let expected = nearest(codes, x.into()) | if x.is_sign_negative() { 0x80 } else { 0 };
        assert_eq!(f32_to_e4m3(x), expected, "{x:e}");
    }
    for x in [448.1, 464.0, 465.0, 1e30, f32::MAX, f32::INFINITY] {
        assert_eq!((f32_to_e4m3(x), f32_to_e4m3(-x)), (0x7e, 0xfe), "{x:e}");
    }
}

#[test]
fn e2m1_codes_have_the_values_of_the_format() {
    let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for code in 0..=255u8 {
        let magnitude = magnitudes[usize::from(code & 7)];
        let expected: f32 = if code & 8 == 0 { magnitude } else { -magnitude };
        assert_eq!(
            e2m1_to_f32(code).to_bits(),
            expected.to_bits(),
            "{code:#04x}"
        );
        assert_eq!(
            f32_to_e2m1(expected),
            code & 15,
            "{code:#04x} does not come back"
        );
    }
}

#[test]
fn e2m1_rounds_to_nearest_with_ties_to_even_and_saturates() {
    let values: Vec<f32> = (0..8).map(e2m1_to_f32).collect();
    for x in awkward_inputs(&values) {
        let codes = (0..8).map(|code| (code, f64::from(e2m1_to_f32(code))));
        let expected = nearest(codes, x.into()) | if x.is_sign_negative() { 8 } else { 0 };
        assert_eq!(f32_to_e2m1(x), expected, "{x:e}");
    }
    assert_eq!(
        (f32_to_e2m1(f32::INFINITY), f32_to_e2m1(f32::NEG_INFINITY)),
        (7, 15)
    );
    assert_eq!((f32_to_e2m1(f32::NAN), f32_to_e2m1(-f32::NAN)), (7, 7));
}

#[test]
fn e8m0_codes_are_powers_of_two() {
    for code in 0..=254u8 {
        let value = ue8m0_to_f32(code);
        assert_eq!(f64::from(value), 2f64.powi(i32::from(code) - 127), "{code}");
        assert_eq!(f32_to_ue8m0_ceil(value), code);
        assert_eq!(
            f32_to_ue8m0_ceil(value.next_up()),
            code.saturating_add(1).min(254),
            "{code}"
        );
    }
    assert!(ue8m0_to_f32(255).is_nan());
    assert_eq!(f32_to_ue8m0_ceil(f32::NAN), 255);
    assert_eq!(f32_to_ue8m0_ceil(f32::INFINITY), 254);
}

#[test]
fn an_e8m0_scale_is_the_smallest_that_is_large_enough() {
    for x in awkward_inputs(&[]) {
        let expected = (0..=253)
            .find(|&code| ue8m0_to_f32(code) >= x)
            .unwrap_or(254);
        assert_eq!(f32_to_ue8m0_ceil(x), expected, "{x:e}");
    }
}

#[test]
fn bf16_rounds_to_nearest_with_ties_to_even() {
    for code in 0..=u16::MAX {
        let x = bf16_to_f32(code);
        if x.is_nan() {
            assert!(bf16_to_f32(bf16_from_f32(x)).is_nan(), "{code:#06x}");
            continue;
        }
        assert_eq!(bf16_from_f32(x), code, "{code:#06x} does not come back");
        if x.is_infinite() {
            continue;
        }
        // The next code lies 2^16 f32 steps further from zero, the tie half way.
        let tie = x.to_bits() | 0x8000;
        let even = if code % 2 == 0 { code } else { code + 1 };
        assert_eq!(
            bf16_from_f32(f32::from_bits(tie - 1)),
            code,
            "below the tie of {code:#06x}"
        );
        assert_eq!(
            bf16_from_f32(f32::from_bits(tie)),
            even,
            "the tie of {code:#06x}"
        );
        assert_eq!(
            bf16_from_f32(f32::from_bits(tie + 1)),
            code + 1,
            "above that of {code:#06x}"
        );
    }
}
