//! IQ2_XXS and IQ4_XS.

use std::arch::x86_64::*;
use std::sync::LazyLock;

use ds4_formats::quant::{IQ4_LEVELS, iq2_xxs_grid};

use super::block256::{Block, Type256};
use super::constants::{bytes, four, half, matrix, table};

/// The grid with 2 bits for each magnitude: 0 for 8, 1 for 25, 2 for 43. Value `j` of row `i` is in
/// bits `2 j` of word `i`; 64 words for each two-register lookup.
static GRID: LazyLock<[[[u16; 32]; 2]; 4]> = LazyLock::new(|| {
    let mut out = [[[0; 32]; 2]; 4];
    for (i, row) in iq2_xxs_grid().iter().enumerate() {
        for (j, magnitude) in row.iter().enumerate() {
            let code: u16 = match magnitude {
                8 => 0,
                25 => 1,
                _ => 2,
            };
            out[i / 64][i / 32 % 2][i % 32] |= code << (2 * j);
        }
    }
    out
});

/// A bit matrix in every 64-bit lane.
#[inline(always)]
unsafe fn everywhere(rows: [u8; 8]) -> __m512i {
    // SAFETY: inside an entry point of this path.
    unsafe { _mm512_set1_epi64(matrix(rows) as i64) }
}

/// A block is 32 groups of 8 elements. The 512 bytes of the grid stay in eight registers: four
/// two-register lookups give 32 candidates each, two bits of the index choose among them, and the
/// result is the block's 256 codes of 2 bits, in natural order. As byte `b` holds elements
/// `4 b .. 4 b + 4`, plane `k` is bits `2 k` of every byte; and since 8 ^ 25 and 8 ^ 43 are
/// constants, a bit matrix turns the 2 bits into the magnitude at once.
#[derive(Clone, Copy)]
pub(super) struct Iq2Xxs {
    grid: [[__m512i; 2]; 4],
    /// Index byte `8 i + l` to word `4 i + l`.
    indices: __m512i,
    /// Shifts by which byte `8 i + 2 l + h` finds sign code `l` of group `i`.
    sign_codes: __m512i,
    /// Sign code to sign byte: bit 7 becomes the parity of the others.
    signs: __m512i,
    /// For each plane, 64 plus the magnitude.
    magnitudes: [__m512i; 4],
    /// For each plane, the sign bit of every byte.
    sign_bits: [__m512i; 4],
}

impl Type256 for Iq2Xxs {
    const BYTES: usize = 66;
    const OFFSET: u32 = 6;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            let grid = &*GRID;
            Iq2Xxs {
                grid: four!(i => [
                    _mm512_loadu_si512(grid[i][0].as_ptr().cast()),
                    _mm512_loadu_si512(grid[i][1].as_ptr().cast()),
                ]),
                indices: bytes(&table!(b => b / 8 * 8 + b % 8 / 2)),
                sign_codes: bytes(&table!(b => 32 + 7 * (b % 8 / 2))),
                signs: everywhere([1, 2, 4, 8, 16, 32, 64, 127]),
                magnitudes: four!(k => {
                    // 8 ^ 25 = 0b010001 for the low bit, 8 ^ 43 = 0b100011 for the high one.
                    let (low, high) = (1 << (2 * k), 2 << (2 * k));
                    everywhere([low | high, high, 0, 0, low, high, 0, 0])
                }),
                sign_bits: four!(k => _mm512_set1_epi16((0x1001 << k) as i16)),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: d at 0, then 8 groups of two 32-bit words.
        unsafe {
            let groups = _mm512_loadu_si512(block.add(2).cast());
            let index = _mm512_maskz_permutexvar_epi8(0x5555_5555_5555_5555, self.indices, groups);
            let [a, b, c, d] = four!(i =>
                _mm512_permutex2var_epi16(self.grid[i][0], index, self.grid[i][1]));
            let bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(0x40));
            let bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(0x80));
            let codes = _mm512_mask_blend_epi16(
                bit7,
                _mm512_mask_blend_epi16(bit6, a, b),
                _mm512_mask_blend_epi16(bit6, c, d),
            );
            let signs = _mm512_multishift_epi64_epi8(self.sign_codes, groups);
            let signs = _mm512_gf2p8affine_epi64_epi8::<0>(signs, self.signs);
            let twice_64 = _mm512_set1_epi8(-128);
            let codes = four!(k => {
                // 64 + m, and 128 - (64 + m) = 64 - m where the sign bit is set.
                let v = _mm512_gf2p8affine_epi64_epi8::<{ 64 + 8 }>(codes, self.magnitudes[k]);
                let negative = _mm512_test_epi8_mask(signs, self.sign_bits[k]);
                _mm512_mask_sub_epi8(v, negative, twice_64, v)
            });
            // d (2 s + 1) / 8, with s in the top bits of the odd words, for both halves of a group.
            let s = _mm512_ternarylogic_epi32::<0xea>(
                _mm512_srli_epi32::<27>(groups),
                _mm512_set1_epi32(0x1e),
                _mm512_set1_epi32(1),
            );
            let s = _mm512_cvtepi32_ps(_mm512_shuffle_epi32::<0b11_11_01_01>(s));
            let d = _mm512_mul_ps(half(block), _mm512_set1_ps(0.125));
            Block {
                codes,
                scale: _mm512_mul_ps(s, d),
                min: _mm512_setzero_ps(),
            }
        }
    }
}

/// Byte that holds an element: 16 bytes for every 32 elements, the first 16 of them in the low
/// nibbles.
const fn byte_of(e: usize) -> usize {
    16 * (e / 32) + e % 16
}

static NIBBLES: [[u8; 64]; 4] = [
    table!(b => byte_of(4 * b)),
    table!(b => byte_of(4 * b + 1)),
    table!(b => byte_of(4 * b + 2)),
    table!(b => byte_of(4 * b + 3)),
];

#[derive(Clone, Copy)]
pub(super) struct Iq4Xs {
    levels: __m512i,
    /// 0 for even 32-bit lanes (low nibbles), 4 for odd ones.
    shifts: __m512i,
}

impl Type256 for Iq4Xs {
    const BYTES: usize = 136;
    const OFFSET: u32 = 7;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Iq4Xs {
                levels: bytes(&table!(b => IQ4_LEVELS[b % 16] as i32 + 128)),
                shifts: _mm512_set1_epi64(4 << 32),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: d at 0, high scale bits at 2, low ones at 4, codes
        // at 8.
        unsafe {
            let q0 = _mm512_loadu_si512(block.add(8).cast());
            let q1 = _mm512_loadu_si512(block.add(72).cast());
            let codes = four!(k => {
                let v = _mm512_permutex2var_epi8(q0, bytes(&NIBBLES[k]), q1);
                let v = _mm512_srlv_epi32(v, self.shifts);
                _mm512_shuffle_epi8(self.levels, _mm512_and_si512(v, _mm512_set1_epi8(15)))
            });
            // Lane i has the scale of group i / 2: 4 low bits and 2 high ones, less 32.
            let group = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let low = block.add(4).cast::<u32>().read_unaligned();
            let high = block.add(2).cast::<u16>().read_unaligned();
            let low =
                _mm512_srlv_epi32(_mm512_set1_epi32(low as i32), _mm512_slli_epi32::<2>(group));
            let high = _mm512_srlv_epi32(
                _mm512_set1_epi32(i32::from(high)),
                _mm512_slli_epi32::<1>(group),
            );
            let low = _mm512_and_si512(low, _mm512_set1_epi32(15));
            let high = _mm512_and_si512(high, _mm512_set1_epi32(3));
            let s = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
            let s = _mm512_sub_epi32(s, _mm512_set1_epi32(32));
            Block {
                codes,
                scale: _mm512_mul_ps(_mm512_cvtepi32_ps(s), half(block)),
                min: _mm512_setzero_ps(),
            }
        }
    }
}
