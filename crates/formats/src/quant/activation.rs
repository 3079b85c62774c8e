//! Activations, quantised to meet the blocks of weights.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// 32 activations: element `e` is `d * qs[e]`. The partner of the types with blocks of 32.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ActQ8 {
    /// Scale, the largest magnitude over 127.
    pub d: f32,
    /// Codes from -127 to 127.
    pub qs: [i8; 32],
}

/// 256 activations: element `e` is `d * qs[e]`. The partner of the types with blocks of 256;
/// ggml's type 15, never stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockQ8K {
    /// Scale, the largest magnitude over 127.
    pub d: f32,
    /// Codes from -127 to 127.
    pub qs: [i8; 256],
    /// Sums of 16 consecutive codes each, for the types with mins.
    pub bsums: [i16; 16],
}

const _: () = assert!(size_of::<ActQ8>() == 36);
const _: () = assert!(size_of::<BlockQ8K>() == 292);

impl ActQ8 {
    /// A block of zeros.
    pub const ZERO: ActQ8 = ActQ8 {
        d: 0.0,
        qs: [0; 32],
    };
}

impl BlockQ8K {
    /// A block of zeros.
    pub const ZERO: BlockQ8K = BlockQ8K {
        d: 0.0,
        qs: [0; 256],
        bsums: [0; 16],
    };
}

/// One row of activations in the form that [`super::dot`] takes for a weight type; which form is
/// said by [`GgmlType::activation`](crate::GgmlType::activation).
#[derive(Clone, Copy, Debug)]
pub enum Activation<'a> {
    /// As they are, `n` elements.
    F32(&'a [f32]),
    /// `n / 32` blocks.
    Q8(&'a [ActQ8]),
    /// `n / 256` blocks.
    Q8K(&'a [BlockQ8K]),
}

impl Activation<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Activation::F32(x) => x.len(),
            Activation::Q8(x) => 32 * x.len(),
            Activation::Q8K(x) => 256 * x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Quantises a row to blocks of 32.
///
/// Per block, with `amax` the largest magnitude: `d = amax / 127`, `q = round(x * (127 / amax))`,
/// ties to even, all in f32. A block so small that `127 / amax` overflows (below 3.8e-37) becomes
/// zero; a block with an infinity or a NaN gets `d = NaN`, so that the damage shows.
///
/// # Panics
/// Unless `x.len() == 32 * out.len()`.
pub fn quantize_q8(x: &[f32], out: &mut [ActQ8]) {
    assert_eq!(
        x.len(),
        32 * out.len(),
        "activations do not fill the blocks of 32"
    );
    for (x, block) in x.as_chunks::<32>().0.iter().zip(out) {
        block.d = quantize_block(x, &mut block.qs);
    }
}

/// Quantises a row to blocks of 256 with the sums of every 16 codes; the rounding is that of
/// [`quantize_q8`].
///
/// # Panics
/// Unless `x.len() == 256 * out.len()`.
pub fn quantize_q8_k(x: &[f32], out: &mut [BlockQ8K]) {
    assert_eq!(
        x.len(),
        256 * out.len(),
        "activations do not fill the blocks of 256"
    );
    for (x, block) in x.as_chunks::<256>().0.iter().zip(out) {
        block.d = quantize_block(x, &mut block.qs);
        for (sum, qs) in block.bsums.iter_mut().zip(block.qs.as_chunks::<16>().0) {
            *sum = qs.iter().map(|&q| i16::from(q)).sum();
        }
    }
}

fn quantize_block(x: &[f32], qs: &mut [i8]) -> f32 {
    if !x.iter().all(|v| v.is_finite()) {
        qs.fill(0);
        return f32::NAN;
    }
    let amax = x.iter().fold(0.0f32, |amax, v| amax.max(v.abs()));
    let inverse = 127.0 / amax;
    if !inverse.is_finite() {
        qs.fill(0);
        return 0.0;
    }
    for (q, &v) in qs.iter_mut().zip(x) {
        // At most 127 (1 + 2^-23) before rounding, so the code never leaves -127 to 127.
        *q = (v * inverse).round_ties_even() as i8;
    }
    amax / 127.0
}
