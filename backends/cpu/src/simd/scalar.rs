//! Arrays, for any machine.

use super::{LANES, Lanes, Simd};
use ds4_formats::small_float::{bf16_from_f32, bf16_to_f32};

/// Plain Rust, which every machine runs.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(i);
    }
    out
}

impl Simd for Scalar {
    type F = Lanes;
    type I = Lanes<i32>;

    const TILE_ROWS: usize = 2;
    const TILE_VECTORS: usize = 1;
    const HAS_BYTES: bool = false;
    const BYTE_BIAS: u8 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &Lanes) -> Lanes {
        *x
    }

    #[inline(always)]
    fn store(self, x: Lanes, out: &mut Lanes) {
        *out = x;
    }

    #[inline(always)]
    fn load_f16(self, x: &Lanes<u16>) -> Lanes {
        each(|i| half::f16::from_bits(x[i]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, x: &Lanes<u16>) -> Lanes {
        each(|i| bf16_to_f32(x[i]))
    }

    #[inline(always)]
    fn store_bf16(self, x: Lanes, out: &mut Lanes<u16>) {
        for i in 0..LANES {
            out[i] = bf16_from_f32(x[i]);
        }
    }

    #[inline(always)]
    fn load_pairs(self, x: &[u16; 2 * LANES]) -> Lanes {
        each(|i| f32::from_bits(u32::from(x[2 * i]) | (u32::from(x[2 * i + 1]) << 16)))
    }

    #[inline(always)]
    fn split_bf16(self, pairs: Lanes) -> (Lanes, Lanes) {
        (
            each(|i| f32::from_bits(pairs[i].to_bits() << 16)),
            each(|i| f32::from_bits(pairs[i].to_bits() & 0xffff_0000)),
        )
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Not `mul_add`, which is a function call on machines without the instruction.
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sqrt(self, x: Lanes) -> Lanes {
        each(|i| x[i].sqrt())
    }

    #[inline(always)]
    fn abs(self, x: Lanes) -> Lanes {
        each(|i| x[i].abs())
    }

    #[inline(always)]
    fn exponent(self, x: Lanes) -> Lanes {
        each(|i| f32::from_bits(x[i].to_bits() & 0x7f80_0000))
    }

    #[inline(always)]
    fn round(self, x: Lanes) -> Lanes {
        // Adding 1.5 * 2^23 leaves no bits for a fraction; exact for the small values in use, and
        // without a function call on machines that lack the instruction.
        const SHIFT: f32 = 12_582_912.0;
        each(|i| {
            if x[i].abs() < 4_194_304.0 {
                (x[i] + SHIFT) - SHIFT
            } else {
                x[i].round_ties_even()
            }
        })
    }

    #[inline(always)]
    fn exp2(self, n: Lanes) -> Lanes {
        each(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Lanes<i32> {
        [x; LANES]
    }

    #[inline(always)]
    fn dot_bytes(self, sum: Lanes<i32>, x: &Lanes<[u8; 4]>, y: [u8; 4]) -> Lanes<i32> {
        let mut sum = sum;
        for i in 0..LANES {
            for k in 0..4 {
                sum[i] += i32::from(x[i][k] as i8) * i32::from(y[k] as i8);
            }
        }
        sum
    }

    #[inline(always)]
    fn float(self, x: Lanes<i32>) -> Lanes {
        each(|i| x[i] as f32)
    }

    #[inline(always)]
    fn store_bytes(self, x: Lanes, out: &mut Lanes<u8>) -> bool {
        let mut exact = true;
        for i in 0..LANES {
            let byte = x[i] as i8;
            exact &= f32::from(byte) == x[i];
            out[i] = byte as u8;
        }
        exact
    }

    #[inline(always)]
    fn transpose(self, rows: [Lanes; LANES]) -> [Lanes; LANES] {
        let mut out = [[0.0; LANES]; LANES];
        for (i, row) in rows.iter().enumerate() {
            for (j, x) in row.iter().enumerate() {
                out[j][i] = *x;
            }
        }
        out
    }
}
