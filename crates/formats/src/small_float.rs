//! Floats of 4, 8 and 16 bits.
//!
//! | format | bits (sign, exponent, fraction) | bias | values |
//! |---|---|---|---|
//! | E4M3 (`fn`) | 1, 4, 3 | 7 | no infinities; `S.1111.111` is NaN; largest 448; subnormal step 2^-9 |
//! | E2M1 | 1, 2, 1 | 1 | 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives |
//! | E8M0 (unsigned) | 0, 8, 0 | 127 | 2^-127 to 2^127; 255 is NaN |
//! | BF16 | 1, 8, 7 | 127 | the upper half of an f32 |
//!
//! F16 comes from the `half` crate. Formats as in the OCP 8-bit floating point (E4M3) and
//! microscaling (E2M1, E8M0) specifications.

/// The largest finite E4M3 value.
pub const E4M3_MAX: f32 = 448.0;

/// The largest E2M1 value.
pub const E2M1_MAX: f32 = 6.0;

/// The value of an E4M3 code. Exact.
pub const fn e4m3_to_f32(code: u8) -> f32 {
    let exponent = (code >> 3) & 15;
    let fraction = code & 7;
    let magnitude = match (exponent, fraction) {
        (15, 7) => f32::NAN,
        (0, _) => fraction as f32 / 512.0,
        _ => f32::from_bits(((exponent as u32 + 127 - 7) << 23) | ((fraction as u32) << 20)),
    };
    if code & 0x80 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// The nearest E4M3 code, ties to the even code. Beyond 448, infinities included, it saturates;
/// NaN keeps its sign and becomes the NaN code.
pub const fn f32_to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = x.abs();
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= E4M3_MAX {
        0x7e
    } else if magnitude < 1.0 / 64.0 {
        // Below the smallest normal 2^-6 the codes count steps of 2^-9, and code 8 is that normal.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        // Adding half a step less one, plus the last kept bit, carries exactly when rounding up is
        // due, and a carry out of the fraction is the next exponent.
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
        ((rounded >> 20) - ((127 - 7) << 3)) as u8
    };
    sign | code
}

/// The value of an E2M1 code, the low four bits of `code`. Exact.
pub const fn e2m1_to_f32(code: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES[(code & 7) as usize];
    if code & 8 != 0 { -magnitude } else { magnitude }
}

/// The nearest E2M1 code, ties to the even code. Beyond 6, infinities included, it saturates; NaN,
/// which the format lacks, becomes +6 as in the saturating conversion of NVIDIA's hardware.
pub const fn f32_to_e2m1(x: f32) -> u8 {
    if x.is_nan() {
        return 7;
    }
    let magnitude = x.abs();
    // The midpoints between neighbours; a tie belongs to the neighbour with the even code.
    let code = if magnitude <= 0.25 {
        0
    } else if magnitude < 0.75 {
        1
    } else if magnitude <= 1.25 {
        2
    } else if magnitude < 1.75 {
        3
    } else if magnitude <= 2.5 {
        4
    } else if magnitude < 3.5 {
        5
    } else if magnitude <= 5.0 {
        6
    } else {
        7
    };
    if x.is_sign_negative() { code | 8 } else { code }
}

/// The value of an E8M0 code: 2^(code - 127), and NaN for 255. Exact.
pub const fn ue8m0_to_f32(code: u8) -> f32 {
    match code {
        // 2^-127 is a subnormal f32.
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits((code as u32) << 23),
    }
}

/// The code of the smallest E8M0 value that is at least `x`, the way scales are chosen: zero and
/// negative numbers give code 0, numbers above 2^127 saturate at 254, NaN gives 255.
pub const fn f32_to_ue8m0_ceil(x: f32) -> u8 {
    if x.is_nan() {
        255
    } else if x <= ue8m0_to_f32(0) {
        0
    } else if x > ue8m0_to_f32(254) {
        254
    } else {
        let bits = x.to_bits();
        (bits >> 23) as u8 + (bits & 0x7f_ffff != 0) as u8
    }
}

/// The value of a BF16 code. Exact.
pub const fn bf16_to_f32(code: u16) -> f32 {
    f32::from_bits((code as u32) << 16)
}

/// The nearest BF16 code, ties to the even code; what rounds past the largest becomes infinity,
/// and NaN stays a NaN.
pub fn bf16_from_f32(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}
