//! Rows to bytes on disk and back, without loss.
//!
//! Rounded cache rows lie on small grids, so they are stored as codes and scale
//! exponents instead of the bf16 numbers that the session keeps. A group of rows
//! that does not lie on its grid is stored as it is; the [`Encoding`] says which.
//!
//! Encoded rows are split into planes, each a property of all rows, so that a
//! general compressor finds like next to like.

use std::ops::Range;

use ds4_formats::small_float::ue8m0_to_f32;
use ds4_model::ElementType;
use ds4_model::rounding::{INDEX_ROUND_BLOCK, KV_ROUND_BLOCK, ceil_log2};

/// Largest E4M3 magnitude.
const E4M3_MAX: f32 = 448.0;
/// Largest E2M1 magnitude.
const E2M1_MAX: f32 = 6.0;
/// `16384 + x` has the multiple of 2^-9 that `x < 512` is in its low bits.
const STEP_2_POW_MINUS_9: f32 = 16384.0;
/// `4194304 + x` has the multiple of 1/2 that `x` is in its low bits.
const STEP_HALF: f32 = 4_194_304.0;
/// Smallest and largest scale exponent that is stored: inside this range a
/// scale and its inverse are normal numbers.
const EXPONENTS: Range<i32> = -126..127;

/// What a group of rows holds, which decides the encoding that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowGrid {
    /// Attention rows in bf16: all but the last `rope_dim` channels on the
    /// E4M3 grid, in blocks of [`KV_ROUND_BLOCK`] with a power-of-two scale.
    Attention {
        /// Channels at the end of a row that are plain bf16.
        rope_dim: usize,
    },
    /// Index rows in bf16, on the E2M1 grid, in blocks of
    /// [`INDEX_ROUND_BLOCK`] with a power-of-two scale.
    Index,
    /// No grid.
    None,
}

/// How a group of rows is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The elements themselves: all their lowest bytes, then all their next
    /// bytes, and so on.
    Planes = 0,
    /// E4M3 codes `[n_rows, width - rope_dim]`, E8M0 scales
    /// `[n_rows, n_blocks]`, then the low and the high bytes of the bf16
    /// channels, `[n_rows, rope_dim]` each.
    E4m3 = 1,
    /// E2M1 codes, two in a byte, `[n_rows, width / 2]`, then E8M0 scales
    /// `[n_rows, n_blocks]`. Byte `j` of a block of `n` channels has channel `j`
    /// in its low half and channel `n / 2 + j` in its high half.
    E2m1 = 2,
}

impl Encoding {
    /// The encoding that a byte of a file names.
    pub fn from_code(code: u8) -> Option<Encoding> {
        [Encoding::Planes, Encoding::E4m3, Encoding::E2m1]
            .into_iter()
            .find(|e| *e as u8 == code)
    }
}

/// Size and meaning of the rows of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFormat {
    /// Element of a row in memory.
    pub element: ElementType,
    /// Elements of a row.
    pub width: usize,
    /// The grid they are expected on.
    pub grid: RowGrid,
}

impl RowFormat {
    /// Bytes of one row in memory.
    pub fn row_bytes(&self) -> usize {
        self.width * self.element.n_bytes()
    }

    /// Bytes of one encoded row; `None` when rows of this format cannot be
    /// encoded so.
    pub fn encoded_row_bytes(&self, encoding: Encoding) -> Option<usize> {
        match (encoding, self.grid) {
            (Encoding::Planes, _) => Some(self.row_bytes()),
            (Encoding::E4m3, RowGrid::Attention { rope_dim }) => {
                let plain = self.width - rope_dim;
                Some(plain + plain.div_ceil(KV_ROUND_BLOCK) + 2 * rope_dim)
            }
            (Encoding::E2m1, RowGrid::Index) => {
                Some(self.width / 2 + self.width.div_ceil(INDEX_ROUND_BLOCK))
            }
            _ => None,
        }
    }

    /// Appends rows to `out` in the smallest encoding that gives back the same
    /// bytes, which is checked.
    pub fn encode(&self, rows: &[u8], out: &mut Vec<u8>) -> Encoding {
        debug_assert_eq!(rows.len() % self.row_bytes(), 0);
        let start = out.len();
        let encoding = match self.grid {
            RowGrid::Attention { rope_dim } => {
                encode_e4m3(rows, self.width, rope_dim, out);
                Encoding::E4m3
            }
            RowGrid::Index => {
                encode_e2m1(rows, self.width, out);
                Encoding::E2m1
            }
            RowGrid::None => {
                encode_planes(rows, self.element.n_bytes(), out);
                return Encoding::Planes;
            }
        };
        let mut decoded = vec![0; rows.len()];
        let same = self.decode(encoding, &out[start..], &mut decoded) && decoded == rows;
        if same {
            return encoding;
        }
        out.truncate(start);
        encode_planes(rows, self.element.n_bytes(), out);
        Encoding::Planes
    }

    /// Decodes into `rows`, whose length says how many there are. False when
    /// `encoded` is not so many rows of this encoding; `rows` is then undefined.
    #[must_use]
    pub fn decode(&self, encoding: Encoding, encoded: &[u8], rows: &mut [u8]) -> bool {
        let n_rows = rows.len() / self.row_bytes();
        let expected = self.encoded_row_bytes(encoding).map(|n| n * n_rows);
        if expected != Some(encoded.len()) || rows.len() != n_rows * self.row_bytes() {
            return false;
        }
        match (encoding, self.grid) {
            (Encoding::E4m3, RowGrid::Attention { rope_dim }) => {
                decode_e4m3(encoded, self.width, rope_dim, rows);
            }
            (Encoding::E2m1, _) => decode_e2m1(encoded, self.width, rows),
            _ => decode_planes(encoded, self.element.n_bytes(), rows),
        }
        true
    }
}

fn encode_planes(rows: &[u8], element_bytes: usize, out: &mut Vec<u8>) {
    for plane in 0..element_bytes {
        out.extend(
            rows.chunks_exact(element_bytes)
                .map(|element| element[plane]),
        );
    }
}

fn decode_planes(planes: &[u8], element_bytes: usize, rows: &mut [u8]) {
    let n = rows.len() / element_bytes;
    if n == 0 {
        return;
    }
    for (i, plane) in planes.chunks_exact(n).enumerate() {
        for (element, byte) in rows.chunks_exact_mut(element_bytes).zip(plane) {
            element[i] = *byte;
        }
    }
}

/// Largest magnitude of a block of bf16 numbers.
fn amax(block: &[u8]) -> f32 {
    let bits = block.chunks_exact(2).fold(0, |m: u16, b| {
        m.max(u16::from_le_bytes([b[0], b[1]]) & 0x7fff)
    });
    f32::from_bits(u32::from(bits) << 16)
}

/// The E8M0 code of the smallest scale at which `amax` is inside a grid that
/// ends at `limit`, and the inverse of the scale. A block that was rounded at
/// some power-of-two scale lies on the grid of every smaller scale that its
/// values fit, so this need not be the scale it was rounded at.
fn scale_of(amax: f32, limit: f32) -> (u8, f32) {
    let wanted = if amax.is_finite() {
        ceil_log2(amax * (1.0 / limit))
    } else {
        EXPONENTS.end
    };
    let e = wanted.clamp(EXPONENTS.start, EXPONENTS.end - 1);
    ((e + 127) as u8, f32::from_bits(((127 - e) as u32) << 23))
}

/// The E4M3 code of a bf16 number times `inverse`, if it lies on the grid.
#[inline(always)]
fn e4m3_code(bits: u16, inverse: f32) -> u8 {
    let x = f32::from_bits(u32::from(bits & 0x7fff) << 16) * inverse;
    let normal = (x.to_bits() >> 20).wrapping_sub((127 - 7) << 3);
    let subnormal = (x + STEP_2_POW_MINUS_9).to_bits();
    let magnitude = if x < 1.0 / 64.0 { subnormal } else { normal };
    (magnitude & 0x7f) as u8 | (bits >> 8) as u8 & 0x80
}

/// The bf16 bits of an E4M3 code times `scale`.
#[inline(always)]
fn e4m3_value(code: u8, scale: f32) -> u16 {
    let magnitude = u32::from(code & 0x7f);
    let normal = f32::from_bits((magnitude << 20) + ((127 - 7) << 23));
    let subnormal = f32::from_bits(STEP_2_POW_MINUS_9.to_bits() | magnitude) - STEP_2_POW_MINUS_9;
    let x = if magnitude < 8 { subnormal } else { normal } * scale;
    (x.to_bits() >> 16) as u16 | u16::from(code & 0x80) << 8
}

/// The E2M1 code of a bf16 number times `inverse`, if it lies on the grid.
#[inline(always)]
fn e2m1_code(bits: u16, inverse: f32) -> u8 {
    let x = f32::from_bits(u32::from(bits & 0x7fff) << 16) * inverse;
    let normal = (x.to_bits() >> 22).wrapping_sub((127 - 1) << 1);
    let subnormal = (x + STEP_HALF).to_bits();
    let magnitude = if x < 1.0 { subnormal } else { normal };
    (magnitude & 7) as u8 | (bits >> 12) as u8 & 8
}

/// The bf16 bits of an E2M1 code, the low four bits of `code`, times `scale`.
#[inline(always)]
fn e2m1_value(code: u8, scale: f32) -> u16 {
    let magnitude = u32::from(code & 7);
    let normal = f32::from_bits((magnitude << 22) + ((127 - 1) << 23));
    let subnormal = f32::from_bits(STEP_HALF.to_bits() | magnitude) - STEP_HALF;
    let x = if magnitude < 2 { subnormal } else { normal } * scale;
    (x.to_bits() >> 16) as u16 | u16::from(code & 8) << 12
}

fn encode_e4m3(rows: &[u8], width: usize, rope_dim: usize, out: &mut Vec<u8>) {
    let plain = width - rope_dim;
    let n_rows = rows.len() / (2 * width);
    let n_blocks = plain.div_ceil(KV_ROUND_BLOCK);
    let start = out.len();
    out.resize(start + n_rows * (plain + n_blocks + 2 * rope_dim), 0);
    let (codes, rest) = out[start..].split_at_mut(n_rows * plain);
    let (scales, rest) = rest.split_at_mut(n_rows * n_blocks);
    let (low, high) = rest.split_at_mut(n_rows * rope_dim);
    for (r, row) in rows.chunks_exact(2 * width).enumerate() {
        let (row, rope) = row.split_at(2 * plain);
        let codes = &mut codes[r * plain..][..plain];
        let scales = &mut scales[r * n_blocks..][..n_blocks];
        for ((block, codes), scale) in row
            .chunks(2 * KV_ROUND_BLOCK)
            .zip(codes.chunks_mut(KV_ROUND_BLOCK))
            .zip(scales)
        {
            let inverse;
            (*scale, inverse) = scale_of(amax(block), E4M3_MAX);
            for (b, code) in block.chunks_exact(2).zip(codes) {
                *code = e4m3_code(u16::from_le_bytes([b[0], b[1]]), inverse);
            }
        }
        let low = &mut low[r * rope_dim..][..rope_dim];
        let high = &mut high[r * rope_dim..][..rope_dim];
        for ((b, low), high) in rope.chunks_exact(2).zip(low).zip(high) {
            (*low, *high) = (b[0], b[1]);
        }
    }
}

fn decode_e4m3(encoded: &[u8], width: usize, rope_dim: usize, rows: &mut [u8]) {
    let plain = width - rope_dim;
    let n_rows = rows.len() / (2 * width);
    let n_blocks = plain.div_ceil(KV_ROUND_BLOCK);
    let (codes, rest) = encoded.split_at(n_rows * plain);
    let (scales, rest) = rest.split_at(n_rows * n_blocks);
    let (low, high) = rest.split_at(n_rows * rope_dim);
    for (r, row) in rows.chunks_exact_mut(2 * width).enumerate() {
        let (row, rope) = row.split_at_mut(2 * plain);
        let codes = &codes[r * plain..][..plain];
        let scales = &scales[r * n_blocks..][..n_blocks];
        for ((block, codes), scale) in row
            .chunks_mut(2 * KV_ROUND_BLOCK)
            .zip(codes.chunks(KV_ROUND_BLOCK))
            .zip(scales)
        {
            let scale = ue8m0_to_f32(*scale);
            for (b, code) in block.chunks_exact_mut(2).zip(codes) {
                b.copy_from_slice(&e4m3_value(*code, scale).to_le_bytes());
            }
        }
        let low = &low[r * rope_dim..][..rope_dim];
        let high = &high[r * rope_dim..][..rope_dim];
        for ((b, low), high) in rope.chunks_exact_mut(2).zip(low).zip(high) {
            (b[0], b[1]) = (*low, *high);
        }
    }
}

fn encode_e2m1(rows: &[u8], width: usize, out: &mut Vec<u8>) {
    let n_rows = rows.len() / (2 * width);
    let n_blocks = width.div_ceil(INDEX_ROUND_BLOCK);
    let start = out.len();
    out.resize(start + n_rows * (width / 2 + n_blocks), 0);
    let (codes, scales) = out[start..].split_at_mut(n_rows * (width / 2));
    for (r, row) in rows.chunks_exact(2 * width).enumerate() {
        let codes = &mut codes[r * (width / 2)..][..width / 2];
        let scales = &mut scales[r * n_blocks..][..n_blocks];
        for ((block, codes), scale) in row
            .chunks(2 * INDEX_ROUND_BLOCK)
            .zip(codes.chunks_mut(INDEX_ROUND_BLOCK / 2))
            .zip(scales)
        {
            let inverse;
            (*scale, inverse) = scale_of(amax(block), E2M1_MAX);
            let (first, second) = block.split_at(block.len() / 2);
            for ((a, b), code) in first.chunks_exact(2).zip(second.chunks_exact(2)).zip(codes) {
                let a = e2m1_code(u16::from_le_bytes([a[0], a[1]]), inverse);
                let b = e2m1_code(u16::from_le_bytes([b[0], b[1]]), inverse);
                *code = a | b << 4;
            }
        }
    }
}

fn decode_e2m1(encoded: &[u8], width: usize, rows: &mut [u8]) {
    let n_rows = rows.len() / (2 * width);
    let n_blocks = width.div_ceil(INDEX_ROUND_BLOCK);
    let (codes, scales) = encoded.split_at(n_rows * (width / 2));
    for (r, row) in rows.chunks_exact_mut(2 * width).enumerate() {
        let codes = &codes[r * (width / 2)..][..width / 2];
        let scales = &scales[r * n_blocks..][..n_blocks];
        for ((block, codes), scale) in row
            .chunks_mut(2 * INDEX_ROUND_BLOCK)
            .zip(codes.chunks(INDEX_ROUND_BLOCK / 2))
            .zip(scales)
        {
            let scale = ue8m0_to_f32(*scale);
            let (first, second) = block.split_at_mut(block.len() / 2);
            for ((a, b), code) in first
                .chunks_exact_mut(2)
                .zip(second.chunks_exact_mut(2))
                .zip(codes)
            {
                a.copy_from_slice(&e2m1_value(*code, scale).to_le_bytes());
                b.copy_from_slice(&e2m1_value(*code >> 4, scale).to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_formats::small_float::{bf16_from_f32, e2m1_to_f32, e4m3_to_f32};
    use ds4_model::rounding::{index_round_row, kv_round_row};
    use proptest::prelude::*;

    const ATTENTION: RowFormat = RowFormat {
        element: ElementType::Bf16,
        width: 512,
        grid: RowGrid::Attention { rope_dim: 64 },
    };
    const INDEX: RowFormat = RowFormat {
        element: ElementType::Bf16,
        width: 128,
        grid: RowGrid::Index,
    };

    fn bf16_bytes(row: &[f32]) -> Vec<u8> {
        row.iter()
            .flat_map(|x| bf16_from_f32(*x).to_le_bytes())
            .collect()
    }

    fn round_trip(format: RowFormat, rows: &[u8]) -> Encoding {
        let mut encoded = vec![7; 3];
        let encoding = format.encode(rows, &mut encoded);
        let encoded = &encoded[3..];
        let n_rows = rows.len() / format.row_bytes();
        assert_eq!(
            Some(encoded.len()),
            format.encoded_row_bytes(encoding).map(|n| n * n_rows)
        );
        let mut decoded = vec![0x55; rows.len()];
        assert!(format.decode(encoding, encoded, &mut decoded));
        assert_eq!(decoded, rows, "{format:?} as {encoding:?}");
        encoding
    }

    #[test]
    fn full_size_rows_take_583_and_68_bytes() {
        assert_eq!(ATTENTION.encoded_row_bytes(Encoding::E4m3), Some(583));
        assert_eq!(INDEX.encoded_row_bytes(Encoding::E2m1), Some(68));
    }

    #[test]
    fn codes_are_those_of_the_number_formats() {
        for code in 0..=255u8 {
            if code & 0x7f == 0x7f {
                continue;
            }
            let bits = bf16_from_f32(e4m3_to_f32(code));
            assert_eq!(e4m3_code(bits, 1.0), code);
            assert_eq!(e4m3_value(code, 1.0), bits);
        }
        for code in 0..16u8 {
            let bits = bf16_from_f32(e2m1_to_f32(code));
            assert_eq!(e2m1_code(bits, 1.0), code);
            assert_eq!(e2m1_value(code, 1.0), bits);
        }
    }

    proptest! {
        #[test]
        fn rounded_rows_are_always_encoded_compactly(
            width in prop::sample::select(vec![66usize, 96, 128, 192, 200, 512]),
            rope_dim in prop::sample::select(vec![2usize, 32, 64]),
            magnitudes in prop::collection::vec(-30f32..30.0, 1..5),
            seed in any::<u64>(),
        ) {
            let mut rows = Vec::new();
            let mut index = Vec::new();
            let mut state = seed;
            for magnitude in magnitudes {
                let mut next = || {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let unit = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                    if state & 0xf00 == 0 { -0.0 } else { unit * magnitude.exp2() }
                };
                let mut row: Vec<f32> = (0..width).map(|_| next()).collect();
                kv_round_row(&mut row, rope_dim);
                rows.extend(bf16_bytes(&row));
                let mut row: Vec<f32> = (0..128).map(|_| next()).collect();
                index_round_row(&mut row);
                index.extend(bf16_bytes(&row));
            }
            let format = RowFormat { width, grid: RowGrid::Attention { rope_dim }, ..ATTENTION };
            prop_assert_eq!(round_trip(format, &rows), Encoding::E4m3);
            prop_assert_eq!(round_trip(INDEX, &index), Encoding::E2m1);
            for width in [2usize, 16, 32, 64] {
                let format = RowFormat { width, ..INDEX };
                round_trip(format, &index);
            }
        }

        #[test]
        fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            for format in [
                RowFormat { width: 72, grid: RowGrid::Attention { rope_dim: 6 }, ..ATTENTION },
                RowFormat { width: 64, ..INDEX },
                RowFormat { width: 5, grid: RowGrid::None, element: ElementType::F32 },
                RowFormat { width: 3, grid: RowGrid::None, element: ElementType::Bf16 },
            ] {
                let n = bytes.len() / format.row_bytes() * format.row_bytes();
                round_trip(format, &bytes[..n]);
            }
        }
    }

    #[test]
    fn numbers_off_the_grid_are_kept_as_they_are() {
        let mut row = vec![1.0f32; 512];
        row[5] = 1.0 + 1.0 / 16.0;
        assert_eq!(round_trip(ATTENTION, &bf16_bytes(&row)), Encoding::Planes);
        for odd in [f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 64.0, 3.0e38] {
            let mut row = vec![1.0f32; 512];
            row[5] = odd;
            round_trip(ATTENTION, &bf16_bytes(&row));
            round_trip(INDEX, &bf16_bytes(&row));
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let mut rows = vec![0; 1024];
        for n in [0, 582, 584] {
            assert!(!ATTENTION.decode(Encoding::E4m3, &vec![0; n], &mut rows));
        }
        assert!(!ATTENTION.decode(Encoding::E2m1, &[0; 68], &mut rows));
    }
}
