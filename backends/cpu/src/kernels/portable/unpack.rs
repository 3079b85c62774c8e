//! Blocks of 256 as signed codes in natural order, with a scale and a min for every 16.
//!
//! The same numbers as `ds4_formats::quant::decode_row` makes, in a form that products are taken
//! from; a test compares them.

use ds4_formats::quant::*;

/// A block taken apart: element `e` is `scale[e / 16] * codes[e] - min[e / 16]`.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Unpacked {
    pub(crate) codes: [i8; 256],
    pub(crate) scale: [f32; 16],
    pub(crate) min: [f32; 16],
}

impl Unpacked {
    // The AVX-512 kernels begin with it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) const ZERO: Unpacked = Unpacked {
        codes: [0; 256],
        scale: [0.0; 16],
        min: [0.0; 16],
    };
}

/// A type of 256 elements a block.
pub(crate) trait Unpack256: Copy {
    /// The block as it lies in the file, of alignment 1.
    type Block;
    /// Its size.
    const BYTES: usize = size_of::<Self::Block>();
    /// Whether [`Unpacked::min`] is written; otherwise the mins are zero.
    const HAS_MIN: bool = false;
    /// Writes everything else.
    fn unpack(block: &Self::Block, out: &mut Unpacked);
}

macro_rules! types {
    ($($name:ident: $block:ident,)*) => {
        $(
            #[derive(Clone, Copy, Debug)]
            pub(crate) struct $name;

            const _: () = assert!(align_of::<$block>() == 1);
        )*
    };
}

types! {
    Q2K: BlockQ2K,
    Q3K: BlockQ3K,
    Q4K: BlockQ4K,
    Q5K: BlockQ5K,
    Q6K: BlockQ6K,
    Iq2Xxs: BlockIq2Xxs,
    Iq2Xs: BlockIq2Xs,
    Iq2S: BlockIq2S,
    Iq3Xxs: BlockIq3Xxs,
    Iq3S: BlockIq3S,
    Iq1S: BlockIq1S,
    Iq1M: BlockIq1M,
    Iq4Xs: BlockIq4Xs,
}

/// The 2-bit codes of Q2_K and Q3_K: element `128 n + 32 r + l` in bits `2 r` of byte `32 n + l`.
#[inline(always)]
fn two_bits(qs: &[u8; 64], codes: &mut [i8; 256]) {
    for (qs, codes) in qs
        .as_chunks::<32>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<128>().0)
    {
        for (r, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, q) in codes.iter_mut().zip(qs) {
                *code = ((q >> (2 * r)) & 3) as i8;
            }
        }
    }
}

/// The nibbles of Q4_K and Q5_K: elements `64 m + l` and `64 m + 32 + l` in byte `32 m + l`.
#[inline(always)]
fn nibbles(qs: &[u8; 128], codes: &mut [i8; 256]) {
    for (qs, codes) in qs
        .as_chunks::<32>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<64>().0)
    {
        for l in 0..32 {
            codes[l] = (qs[l] & 15) as i8;
            codes[32 + l] = (qs[l] >> 4) as i8;
        }
    }
}

#[inline(always)]
fn scales_mins(d: f32, dmin: f32, scales: &[u8; 12], out: &mut Unpacked) {
    for j in 0..8 {
        let (scale, min) = BlockQ4K::scale_min(scales, j);
        out.scale[2 * j..][..2].fill(d * f32::from(scale));
        out.min[2 * j..][..2].fill(dmin * f32::from(min));
    }
}

impl Unpack256 for Q2K {
    type Block = BlockQ2K;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &BlockQ2K, out: &mut Unpacked) {
        let (d, dmin) = (f16_to_f32(block.d), f16_to_f32(block.dmin));
        for k in 0..16 {
            out.scale[k] = d * f32::from(block.scales[k] & 15);
            out.min[k] = dmin * f32::from(block.scales[k] >> 4);
        }
        two_bits(&block.qs, &mut out.codes);
    }
}

impl Unpack256 for Q3K {
    type Block = BlockQ3K;

    #[inline(always)]
    fn unpack(block: &BlockQ3K, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        for k in 0..16 {
            let low = (block.scales[k % 8] >> (4 * (k / 8))) & 15;
            let high = (block.scales[8 + k % 4] >> (2 * (k / 4))) & 3;
            out.scale[k] = d * f32::from((low | (high << 4)) as i8 - 32);
        }
        two_bits(&block.qs, &mut out.codes);
        for (bit, codes) in out.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, h) in codes.iter_mut().zip(block.hmask) {
                *code += ((h >> bit) & 1) as i8 * 4 - 4;
            }
        }
    }
}

impl Unpack256 for Q4K {
    type Block = BlockQ4K;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &BlockQ4K, out: &mut Unpacked) {
        let (d, dmin) = (f16_to_f32(block.d), f16_to_f32(block.dmin));
        scales_mins(d, dmin, &block.scales, out);
        nibbles(&block.qs, &mut out.codes);
    }
}

impl Unpack256 for Q5K {
    type Block = BlockQ5K;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &BlockQ5K, out: &mut Unpacked) {
        let (d, dmin) = (f16_to_f32(block.d), f16_to_f32(block.dmin));
        scales_mins(d, dmin, &block.scales, out);
        nibbles(&block.qs, &mut out.codes);
        for (bit, codes) in out.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, h) in codes.iter_mut().zip(block.qh) {
                *code |= (((h >> bit) & 1) << 4) as i8;
            }
        }
    }
}

impl Unpack256 for Q6K {
    type Block = BlockQ6K;

    #[inline(always)]
    fn unpack(block: &BlockQ6K, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        for k in 0..16 {
            out.scale[k] = d * f32::from(block.scales[k]);
        }
        two_bits(&block.qh, &mut out.codes);
        let low = block.ql.as_chunks::<32>().0;
        for (i, codes) in out.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (n, r) = (i / 4, i % 4);
            for (code, q) in codes.iter_mut().zip(low[2 * n + r % 2]) {
                *code = (*code << 4 | ((q >> (4 * (r / 2))) & 15) as i8) - 32;
            }
        }
    }
}

/// Byte `j` is 255 where bit `j` of the index is set.
static SIGN_MASKS: [u64; 256] = {
    let mut masks = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut j = 0;
        while j < 8 {
            if (i >> j) & 1 != 0 {
                masks[i] |= 0xff << (8 * j);
            }
            j += 1;
        }
        i += 1;
    }
    masks
};

/// Eight magnitudes, none of them 0, negated where a bit of `signs` is set. The complement of a
/// byte that is not 0 can be incremented without a carry into the next.
#[inline(always)]
fn signed(magnitudes: [u8; 8], signs: u8) -> [i8; 8] {
    let mask = SIGN_MASKS[signs as usize];
    let ones = mask & 0x0101_0101_0101_0101;
    ((u64::from_le_bytes(magnitudes) ^ mask) + ones)
        .to_le_bytes()
        .map(|b| b as i8)
}

#[inline(always)]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    (bytes[i / 2] >> (4 * (i % 2))) & 15
}

/// Two rows of 4 side by side.
#[inline(always)]
fn beside(a: [u8; 4], b: [u8; 4]) -> [u8; 8] {
    (u64::from(u32::from_le_bytes(a)) | (u64::from(u32::from_le_bytes(b)) << 32)).to_le_bytes()
}

impl Unpack256 for Iq2Xxs {
    type Block = BlockIq2Xxs;

    #[inline(always)]
    fn unpack(block: &BlockIq2Xxs, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let grid = iq2_xxs_grid();
        let codes = out.codes.as_chunks_mut::<8>().0;
        for (i, [indices, signs]) in block.groups.iter().enumerate() {
            let (indices, signs) = (indices.get(), signs.get());
            out.scale[2 * i..][..2].fill(d * (0.5 + (signs >> 28) as f32) / 4.0);
            for l in 0..4 {
                let row = grid[(indices >> (8 * l)) as usize & 255];
                codes[4 * i + l] = signed(row, even_signs((signs >> (7 * l)) as u8 & 127));
            }
        }
    }
}

impl Unpack256 for Iq2Xs {
    type Block = BlockIq2Xs;

    #[inline(always)]
    fn unpack(block: &BlockIq2Xs, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let grid = iq2_xs_grid();
        for k in 0..16 {
            out.scale[k] = d * (0.5 + f32::from(nibble(&block.scales, k))) / 4.0;
        }
        for (codes, q) in out.codes.as_chunks_mut::<8>().0.iter_mut().zip(&block.qs) {
            let q = q.get();
            *codes = signed(grid[q as usize & 511], even_signs((q >> 9) as u8));
        }
    }
}

impl Unpack256 for Iq2S {
    type Block = BlockIq2S;

    #[inline(always)]
    fn unpack(block: &BlockIq2S, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let grid = iq2_s_grid();
        for k in 0..16 {
            out.scale[k] = d * (0.5 + f32::from(nibble(&block.scales, k))) / 4.0;
        }
        for (g, codes) in out.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = (block.qh[g / 4] >> (2 * (g % 4))) & 3;
            let row = grid[block.qs[g] as usize | ((high as usize) << 8)];
            *codes = signed(row, block.signs[g]);
        }
    }
}

impl Unpack256 for Iq3Xxs {
    type Block = BlockIq3Xxs;

    #[inline(always)]
    fn unpack(block: &BlockIq3Xxs, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let grid = iq3_xxs_grid();
        let codes = out.codes.as_chunks_mut::<8>().0;
        for (i, word) in block.signs_scale.iter().enumerate() {
            let word = word.get();
            out.scale[2 * i..][..2].fill(d * (0.5 + (word >> 28) as f32) / 2.0);
            for l in 0..4 {
                let [a, b] = [0, 1].map(|h| grid[block.qs[8 * i + 2 * l + h] as usize]);
                let signs = even_signs((word >> (7 * l)) as u8 & 127);
                codes[4 * i + l] = signed(beside(a, b), signs);
            }
        }
    }
}

impl Unpack256 for Iq3S {
    type Block = BlockIq3S;

    #[inline(always)]
    fn unpack(block: &BlockIq3S, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let grid = iq3_s_grid();
        let codes = out.codes.as_chunks_mut::<8>().0;
        for i in 0..8 {
            let scale = d * f32::from(1 + 2 * nibble(&block.scales, i));
            out.scale[2 * i..][..2].fill(scale);
            for l in 0..4 {
                let [a, b] = [2 * l, 2 * l + 1].map(|q| {
                    let high = (block.qh[i] >> q) & 1;
                    grid[block.qs[8 * i + q] as usize | ((high as usize) << 8)]
                });
                codes[4 * i + l] = signed(beside(a, b), block.signs[4 * i + l]);
            }
        }
    }
}

/// A ternary grid row moved up or down by an eighth, in eighths.
#[inline(always)]
fn shifted(row: [i8; 8], down: bool) -> [i8; 8] {
    // Byte by byte 8 v + 1, which is -7, 1 or 9, and 2 less for `down`: with the top bits set, no
    // byte borrows from the next.
    let v = u64::from_le_bytes(row.map(|v| v as u8));
    let up = ((v << 3) & 0xf8f8_f8f8_f8f8_f8f8) | 0x0101_0101_0101_0101;
    let tops = 0x8080_8080_8080_8080;
    let less_2 = ((up | tops) - 0x0202_0202_0202_0202) ^ (!up & tops);
    (if down { less_2 } else { up })
        .to_le_bytes()
        .map(|b| b as i8)
}

impl Unpack256 for Iq1S {
    type Block = BlockIq1S;

    #[inline(always)]
    fn unpack(block: &BlockIq1S, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let grid = iq1_grid();
        let codes = out.codes.as_chunks_mut::<8>().0;
        for (i, h) in block.qh.iter().enumerate() {
            let h = h.get();
            let scale = d * f32::from(2 * ((h >> 12) & 7) + 1) / 8.0;
            out.scale[2 * i..][..2].fill(scale);
            for l in 0..4 {
                let high = (h >> (3 * l)) as usize & 7;
                let row = grid[block.qs[4 * i + l] as usize | (high << 8)];
                codes[4 * i + l] = shifted(row, h & 0x8000 != 0);
            }
        }
    }
}

impl Unpack256 for Iq1M {
    type Block = BlockIq1M;

    #[inline(always)]
    fn unpack(block: &BlockIq1M, out: &mut Unpacked) {
        let d = block.d();
        let grid = iq1_grid();
        for k in 0..16 {
            let s = (block.scales[k / 4].get() >> (3 * (k % 4))) & 7;
            out.scale[k] = d * f32::from(2 * s + 1) / 8.0;
        }
        for (g, codes) in out.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let h = nibble(&block.qh, g);
            let row = grid[block.qs[g] as usize | ((h as usize & 7) << 8)];
            *codes = shifted(row, h & 8 != 0);
        }
    }
}

impl Unpack256 for Iq4Xs {
    type Block = BlockIq4Xs;

    #[inline(always)]
    fn unpack(block: &BlockIq4Xs, out: &mut Unpacked) {
        let d = f16_to_f32(block.d);
        let codes = out.codes.as_chunks_mut::<32>().0;
        for i in 0..8 {
            let high = (block.scales_h.get() >> (2 * i)) as u8 & 3;
            let scale = (nibble(&block.scales_l, i) | (high << 4)) as i8 - 32;
            out.scale[2 * i..][..2].fill(d * f32::from(scale));
            levels(&block.qs[i], &IQ4_LEVELS, &mut codes[i]);
        }
    }
}

/// Blocks of 32 as signed codes in natural order with one scale.
pub(crate) trait Unpack32: Copy {
    /// The block as it lies in the file, of alignment 1.
    type Block;
    /// Its size.
    const BYTES: usize = size_of::<Self::Block>();
    /// Writes the codes and returns the scale.
    fn unpack(block: &Self::Block, codes: &mut [i8; 32]) -> f32;
}

types! {
    Q8_0: BlockQ8_0,
    Iq4Nl: BlockIq4Nl,
    Mxfp4: BlockMxfp4,
}

/// Levels of 32 nibbles stored in halves: element `i < 16` low in byte `i`, `16 + i` high.
#[inline(always)]
fn levels(qs: &[u8; 16], levels: &[i8; 16], codes: &mut [i8; 32]) {
    for (i, &q) in qs.iter().enumerate() {
        codes[i] = levels[(q & 15) as usize];
        codes[16 + i] = levels[(q >> 4) as usize];
    }
}

impl Unpack32 for Q8_0 {
    type Block = BlockQ8_0;

    #[inline(always)]
    fn unpack(block: &BlockQ8_0, codes: &mut [i8; 32]) -> f32 {
        *codes = block.qs;
        f16_to_f32(block.d)
    }
}

impl Unpack32 for Iq4Nl {
    type Block = BlockIq4Nl;

    #[inline(always)]
    fn unpack(block: &BlockIq4Nl, codes: &mut [i8; 32]) -> f32 {
        levels(&block.qs, &IQ4_LEVELS, codes);
        f16_to_f32(block.d)
    }
}

impl Unpack32 for Mxfp4 {
    type Block = BlockMxfp4;

    #[inline(always)]
    fn unpack(block: &BlockMxfp4, codes: &mut [i8; 32]) -> f32 {
        levels(&block.qs, &MXFP4_DOUBLED, codes);
        block.half_scale()
    }
}
