//! Constant vectors and bit matrices.

use std::arch::x86_64::*;

/// Sixty-four bytes, computed from their index when compiled.
macro_rules! table {
    ($b:ident => $value:expr) => {
        const {
            let mut table = [0u8; 64];
            let mut $b = 0usize;
            while $b < 64 {
                table[$b] = ($value) as u8;
                $b += 1;
            }
            table
        }
    };
}
pub(super) use table;

/// `[f(0), f(1), f(2), f(3)]`, spelled out: a closure would be compiled on its own, without the
/// instructions of the function around it.
macro_rules! four {
    ($k:ident => $value:expr) => {
        [
            {
                let $k = 0;
                $value
            },
            {
                let $k = 1;
                $value
            },
            {
                let $k = 2;
                $value
            },
            {
                let $k = 3;
                $value
            },
        ]
    };
}
pub(super) use four;

/// A bit matrix for each 64-bit lane, computed from its index when compiled.
macro_rules! matrices {
    ($q:ident => $rows:expr) => {
        const {
            let mut matrices = [0u64; 8];
            let mut $q = 0usize;
            while $q < 8 {
                matrices[$q] = $crate::kernels::avx512::constants::matrix($rows);
                $q += 1;
            }
            matrices
        }
    };
}
pub(super) use matrices;

/// The operand of `gf2p8affineqb` that makes bit `i` of a byte the parity of the bits that
/// `rows[i]` selects.
pub(super) const fn matrix(rows: [u8; 8]) -> u64 {
    let mut out = 0;
    let mut i = 0;
    while i < 8 {
        out |= (rows[i] as u64) << (8 * (7 - i));
        i += 1;
    }
    out
}

/// The matrix that moves `n` bits from bit `from` on to bit `to` on and clears the others.
pub(super) const fn bits(from: usize, n: usize, to: usize) -> [u8; 8] {
    let mut rows = [0; 8];
    let mut i = 0;
    while i < n {
        rows[to + i] = 1 << (from + i);
        i += 1;
    }
    rows
}

#[inline(always)]
pub(super) unsafe fn bytes(v: &[u8; 64]) -> __m512i {
    // SAFETY: inside an entry point of this path.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline(always)]
pub(super) unsafe fn words(v: &[u64; 8]) -> __m512i {
    // SAFETY: inside an entry point of this path.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

/// The value of the half at `p` in every lane.
#[inline(always)]
pub(super) unsafe fn half(p: *const u8) -> __m512 {
    // SAFETY: the caller has two bytes there.
    unsafe { _mm512_broadcastss_ps(half_ss(p)) }
}

/// The value of the half at `p` in the lowest lane.
#[inline(always)]
pub(super) unsafe fn half_ss(p: *const u8) -> __m128 {
    // SAFETY: the caller has two bytes there.
    unsafe {
        _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(
            p.cast::<u16>().read_unaligned(),
        )))
    }
}
