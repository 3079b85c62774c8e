//! Q2_K to Q6_K. Lane `i` of a plane holds elements `16 i .. 16 i + 16`, so its codes come from one
//! sub-block: a byte permutation brings them there, and a bit matrix for every pair of lanes (32
//! elements) takes the right bits.

use std::arch::x86_64::*;

use super::block256::{Block, Type256};
use super::constants::{bits, bytes, four, half, half_ss, matrices, table, words};

/// Element at byte `b` of plane `k`.
const fn element(k: usize, b: usize) -> usize {
    4 * b + k
}

/// Byte of a 64-byte array of 2-bit codes that holds an element: element `128 n + 32 r + l` is in
/// byte `32 n + l`.
const fn byte_of_2_bits(e: usize) -> usize {
    32 * (e / 128) + e % 32
}

/// Byte of a 128-byte array of nibbles that holds an element: elements `64 m + l` and
/// `64 m + 32 + l` are in byte `32 m + l`.
const fn byte_of_nibble(e: usize) -> usize {
    32 * (e / 64) + e % 32
}

macro_rules! planes {
    ($byte_of:expr) => {
        [
            table!(b => $byte_of(element(0, b))),
            table!(b => $byte_of(element(1, b))),
            table!(b => $byte_of(element(2, b))),
            table!(b => $byte_of(element(3, b))),
        ]
    };
}

static TWO_BITS: [[u8; 64]; 4] = planes!(byte_of_2_bits);
static NIBBLES: [[u8; 64]; 4] = planes!(byte_of_nibble);
/// Byte of an array of 32 with a bit for every 32 elements.
static BITS: [[u8; 64]; 4] = planes!(bit_byte);

const fn bit_byte(e: usize) -> usize {
    e % 32
}

/// Byte of the low nibbles of Q6_K: element `128 n + 32 r + l` is in byte `64 n + 32 (r % 2) + l`.
static Q6K_LOW: [[u8; 64]; 4] = planes!(q6_k_low);

const fn q6_k_low(e: usize) -> usize {
    64 * (e / 128) + 32 * (e % 64 / 32) + e % 32
}

/// Sixteen bytes as floats, lane by lane.
#[inline(always)]
unsafe fn floats(v: __m128i) -> __m512 {
    // SAFETY: inside an entry point of this path.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)) }
}

#[derive(Clone, Copy)]
pub(super) struct Q2K {
    take: __m512i,
}

impl Type256 for Q2K {
    const BYTES: usize = 84;
    const OFFSET: u32 = 0;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Q2K {
                take: words(&matrices!(q => bits(2 * (q % 4), 2, 0))),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: scales at 0, codes at 16, d at 80, dmin at 82.
        unsafe {
            let qs = _mm512_loadu_si512(block.add(16).cast());
            let codes = four!(k => {
                let v = _mm512_permutexvar_epi8(bytes(&TWO_BITS[k]), qs);
                _mm512_gf2p8affine_epi64_epi8::<0>(v, self.take)
            });
            let scales = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.cast()));
            let low = _mm512_and_si512(scales, _mm512_set1_epi32(15));
            let high = _mm512_srli_epi32::<4>(scales);
            Block {
                codes,
                scale: _mm512_mul_ps(_mm512_cvtepi32_ps(low), half(block.add(80))),
                min: _mm512_mul_ps(_mm512_cvtepi32_ps(high), half(block.add(82))),
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q3K {
    low: __m512i,
    high: __m512i,
}

impl Type256 for Q3K {
    const BYTES: usize = 110;
    // A clear high bit subtracts 4.
    const OFFSET: u32 = 2;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Q3K {
                low: words(&matrices!(q => bits(2 * (q % 4), 2, 0))),
                high: words(&matrices!(q => bits(q, 1, 2))),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: high bits at 0, low bits at 32, scales at 96, d at
        // 108.
        unsafe {
            let qs = _mm512_loadu_si512(block.add(32).cast());
            let hm = _mm512_castsi256_si512(_mm256_loadu_si256(block.cast()));
            let codes = four!(k => {
                let low = _mm512_permutexvar_epi8(bytes(&TWO_BITS[k]), qs);
                let high = _mm512_permutexvar_epi8(bytes(&BITS[k]), hm);
                _mm512_or_si512(
                    _mm512_gf2p8affine_epi64_epi8::<0>(low, self.low),
                    _mm512_gf2p8affine_epi64_epi8::<0>(high, self.high),
                )
            });
            let [a, b, c] = block.add(96).cast::<[u32; 3]>().read_unaligned();
            let (nibble, pair) = (0x0f0f_0f0f, 0x0303_0303);
            let scales = _mm_setr_epi32(
                ((a & nibble) | ((c & pair) << 4)) as i32,
                ((b & nibble) | (((c >> 2) & pair) << 4)) as i32,
                (((a >> 4) & nibble) | (((c >> 4) & pair) << 4)) as i32,
                (((b >> 4) & nibble) | (((c >> 6) & pair) << 4)) as i32,
            );
            let scales = _mm512_sub_epi32(_mm512_cvtepu8_epi32(scales), _mm512_set1_epi32(32));
            Block {
                codes,
                scale: _mm512_mul_ps(_mm512_cvtepi32_ps(scales), half(block.add(108))),
                min: _mm512_setzero_ps(),
            }
        }
    }
}

/// Scales and mins of Q4_K and Q5_K: `d` at 0, `dmin` at 2, twelve bytes of 6-bit pairs at 4.
#[inline(always)]
unsafe fn scales_mins(block: *const u8) -> (__m512, __m512) {
    // SAFETY: the caller has a whole block.
    unsafe {
        let [a, b, c] = block.add(4).cast::<[u32; 3]>().read_unaligned();
        let (six, nibble, pair) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
        let v = _mm_setr_epi32(
            (a & six) as i32,
            ((c & nibble) | (((a >> 6) & pair) << 4)) as i32,
            (b & six) as i32,
            (((c >> 4) & nibble) | (((b >> 6) & pair) << 4)) as i32,
        );
        // Each for two sub-blocks of 16.
        let scales = floats(_mm_unpacklo_epi8(v, v));
        let mins = floats(_mm_unpackhi_epi8(v, v));
        (
            _mm512_mul_ps(scales, half(block)),
            _mm512_mul_ps(mins, half(block.add(2))),
        )
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q4K {
    take: __m512i,
}

impl Type256 for Q4K {
    const BYTES: usize = 144;
    const OFFSET: u32 = 0;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Q4K {
                take: words(&matrices!(q => bits(4 * (q % 2), 4, 0))),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: scales up to 16, then the codes.
        unsafe {
            let (scale, min) = scales_mins(block);
            let q0 = _mm512_loadu_si512(block.add(16).cast());
            let q1 = _mm512_loadu_si512(block.add(80).cast());
            let codes = four!(k => {
                let v = _mm512_permutex2var_epi8(q0, bytes(&NIBBLES[k]), q1);
                _mm512_gf2p8affine_epi64_epi8::<0>(v, self.take)
            });
            Block { codes, scale, min }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q5K {
    low: __m512i,
    high: __m512i,
}

impl Type256 for Q5K {
    const BYTES: usize = 176;
    const OFFSET: u32 = 0;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Q5K {
                low: words(&matrices!(q => bits(4 * (q % 2), 4, 0))),
                high: words(&matrices!(q => bits(q, 1, 4))),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: scales up to 16, fifth bits up to 48, then the
        // codes.
        unsafe {
            let (scale, min) = scales_mins(block);
            let qh = _mm512_castsi256_si512(_mm256_loadu_si256(block.add(16).cast()));
            let q0 = _mm512_loadu_si512(block.add(48).cast());
            let q1 = _mm512_loadu_si512(block.add(112).cast());
            let codes = four!(k => {
                let low = _mm512_permutex2var_epi8(q0, bytes(&NIBBLES[k]), q1);
                let high = _mm512_permutexvar_epi8(bytes(&BITS[k]), qh);
                _mm512_or_si512(
                    _mm512_gf2p8affine_epi64_epi8::<0>(low, self.low),
                    _mm512_gf2p8affine_epi64_epi8::<0>(high, self.high),
                )
            });
            Block { codes, scale, min }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q6K {
    low: __m512i,
    high: __m512i,
}

impl Type256 for Q6K {
    const BYTES: usize = 210;
    const OFFSET: u32 = 5;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: inside an entry point of this path.
        unsafe {
            Q6K {
                low: words(&matrices!(q => bits(4 * (q % 4 / 2), 4, 0))),
                high: words(&matrices!(q => bits(2 * (q % 4), 2, 4))),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has a whole block: low bits at 0, high bits at 128, scales at 192, d
        // at 208.
        unsafe {
            let q0 = _mm512_loadu_si512(block.cast());
            let q1 = _mm512_loadu_si512(block.add(64).cast());
            let qh = _mm512_loadu_si512(block.add(128).cast());
            let codes = four!(k => {
                let low = _mm512_permutex2var_epi8(q0, bytes(&Q6K_LOW[k]), q1);
                let high = _mm512_permutexvar_epi8(bytes(&TWO_BITS[k]), qh);
                _mm512_or_si512(
                    _mm512_gf2p8affine_epi64_epi8::<0>(low, self.low),
                    _mm512_gf2p8affine_epi64_epi8::<0>(high, self.high),
                )
            });
            let scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(192).cast()));
            let d = _mm512_broadcastss_ps(half_ss(block.add(208)));
            Block {
                codes,
                scale: _mm512_mul_ps(_mm512_cvtepi32_ps(scales), d),
                min: _mm512_setzero_ps(),
            }
        }
    }
}
