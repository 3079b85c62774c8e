//! Products with the types of 256 elements a block.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::constants::{bytes, table};
use crate::kernels::activation::{q8k_scales, q8k_sums};
use crate::kernels::portable::{Unpack256, Unpacked};
use crate::kernels::{Job, RowPair, Scratch};

/// Activation rows multiplied with an unpacked block while it is in registers.
const MAX_ROWS: usize = 4;

/// A block in registers. Lane `i` of `scale` and `min` belongs to elements `16 i .. 16 i + 16`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Codes plus `2^OFFSET` (or as they are when it is 0), in the order of
    /// [`Order::Planes`](crate::kernels::Order::Planes), as unsigned bytes.
    pub(super) codes: [__m512i; 4],
    pub(super) scale: __m512,
    pub(super) min: __m512,
}

/// How a type is unpacked. The value holds what stays in registers over all blocks.
pub(super) trait Type256: Copy {
    /// Bytes of a block.
    const BYTES: usize;
    /// Binary logarithm of the number that was added to every code; 0 for none.
    const OFFSET: u32;
    /// Whether there are mins.
    const HAS_MIN: bool;

    /// # Safety
    /// The machine has this path.
    unsafe fn new() -> Self;

    /// # Safety
    /// As [`Type256::new`]; `block` is a whole block.
    unsafe fn unpack(&self, block: *const u8) -> Block;
}

/// A block of `T` that was unpacked to memory: codes, scales, mins.
#[derive(Clone, Copy)]
struct Stored<T>(PhantomData<T>);

impl<T: Type256> Stored<T> {
    #[inline(always)]
    unsafe fn store(block: &Block, to: *mut u8) {
        // SAFETY: the caller has `BYTES` there.
        unsafe {
            for k in 0..4 {
                _mm512_storeu_si512(to.add(64 * k).cast(), block.codes[k]);
            }
            _mm512_storeu_ps(to.add(256).cast(), block.scale);
            if T::HAS_MIN {
                _mm512_storeu_ps(to.add(320).cast(), block.min);
            }
        }
    }
}

impl<T: Type256> Type256 for Stored<T> {
    const BYTES: usize = 384;
    const OFFSET: u32 = T::OFFSET;
    const HAS_MIN: bool = T::HAS_MIN;

    #[inline(always)]
    unsafe fn new() -> Self {
        Stored(PhantomData)
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller has `BYTES` there.
        unsafe {
            Block {
                codes: std::array::from_fn(|k| _mm512_loadu_si512(block.add(64 * k).cast())),
                scale: _mm512_loadu_ps(block.add(256).cast()),
                min: if T::HAS_MIN {
                    _mm512_loadu_ps(block.add(320).cast())
                } else {
                    _mm512_setzero_ps()
                },
            }
        }
    }
}

/// # Safety
/// As [`super::RowDots`], inside an entry point of this path.
#[inline(always)]
pub(super) unsafe fn row_dots<T: Type256>(job: &Job<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        let ty = T::new();
        match *job.pairs {
            [] => {}
            [a] => few_rows(&ty, job, [a]),
            [a, b] => few_rows(&ty, job, [a, b]),
            [a, b, c] => few_rows(&ty, job, [a, b, c]),
            [a, b, c, d] => few_rows(&ty, job, [a, b, c, d]),
            _ => many_rows(&ty, job, scratch),
        }
    }
}

/// Up to [`MAX_ROWS`] activation rows: a weight row is unpacked in registers.
#[inline(always)]
unsafe fn few_rows<T: Type256, const R: usize>(ty: &T, job: &Job<'_>, pairs: [RowPair; R]) {
    // SAFETY: the caller's promise: weight rows are whole, activation rows have the form.
    unsafe {
        let n_blocks = job.n_in / 256;
        let acts = pairs.map(|pair| job.act(pair));
        let n_weights = job.n_weights();
        let mut o = 0;
        while o < n_weights {
            let n = (n_weights - o).min(4);
            // Four sums at a time are reduced together; each in the order of a single one.
            let mut sums = [[_mm512_setzero_ps(); 4]; R];
            for i in 0..n {
                let row = job.weights.as_ptr().add((o + i) * job.row_bytes);
                let totals = row_totals(ty, row, n_blocks, job.n_in, acts);
                for r in 0..R {
                    sums[r][i] = totals[r];
                }
            }
            for r in 0..R {
                store_sums(sums[r], job.out(pairs[r], o), n);
            }
            o += n;
        }
    }
}

/// More activation rows: a weight row is unpacked to scratch once.
#[inline(always)]
unsafe fn many_rows<T: Type256>(ty: &T, job: &Job<'_>, scratch: &mut Scratch) {
    let n_blocks = job.n_in / 256;
    let stored = Stored::<T>(PhantomData);
    let buffer = &mut scratch[..n_blocks * Stored::<T>::BYTES];
    // SAFETY: the caller's promise, and the slice above for the scratch.
    unsafe {
        for o in 0..job.n_weights() {
            let row = job.weights.as_ptr().add(o * job.row_bytes);
            for b in 0..n_blocks {
                let block = ty.unpack(row.add(b * T::BYTES));
                let to = buffer.as_mut_ptr().add(b * Stored::<T>::BYTES);
                Stored::<T>::store(&block, to);
            }
            let mut groups = job.pairs.chunks_exact(MAX_ROWS);
            for group in &mut groups {
                let pairs = [group[0], group[1], group[2], group[3]];
                stored_rows(&stored, job, buffer.as_ptr(), pairs, o);
            }
            match *groups.remainder() {
                [] => {}
                [a] => stored_rows(&stored, job, buffer.as_ptr(), [a], o),
                [a, b] => stored_rows(&stored, job, buffer.as_ptr(), [a, b], o),
                [a, b, c] => stored_rows(&stored, job, buffer.as_ptr(), [a, b, c], o),
                _ => unreachable!(),
            }
        }
    }
}

/// One unpacked weight row times `R` activation rows.
#[inline(always)]
unsafe fn stored_rows<T: Type256, const R: usize>(
    ty: &T,
    job: &Job<'_>,
    row: *const u8,
    pairs: [RowPair; R],
    o: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let totals = row_totals(ty, row, job.n_in / 256, job.n_in, acts);
        let mut sums = [_mm512_setzero_ps(); 4];
        sums[..R].copy_from_slice(&totals);
        let sums: [f32; 4] = std::mem::transmute(sums_of_4(sums));
        for r in 0..R {
            *job.out(pairs[r], o) = sums[r];
        }
    }
}

/// Sixteen partial sums of a weight row times each of `R` activation rows.
#[inline(always)]
unsafe fn row_totals<T: Type256, const R: usize>(
    ty: &T,
    row: *const u8,
    n_blocks: usize,
    n_in: usize,
    acts: [*const u8; R],
) -> [__m512; R] {
    // SAFETY: the caller's promise: `n_blocks` blocks of weights and of activations.
    unsafe {
        let mut totals = [_mm512_setzero_ps(); R];
        for b in 0..n_blocks {
            let block = ty.unpack(row.add(b * T::BYTES));
            for r in 0..R {
                let codes = acts[r].add(256 * b);
                let sums = _mm512_loadu_si512(acts[r].add(q8k_sums(n_in) + 64 * b).cast());
                let scale = *acts[r].add(q8k_scales(n_in) + 4 * b).cast::<f32>();
                let mut dot = if T::OFFSET > 0 {
                    // Takes the offset of the codes back: -2^OFFSET times the activations' sum.
                    shifted_left(sums, T::OFFSET)
                } else {
                    _mm512_setzero_si512()
                };
                for k in 0..4 {
                    let act = _mm512_loadu_si512(codes.add(64 * k).cast());
                    dot = _mm512_dpbusd_epi32(dot, block.codes[k], act);
                }
                let mut product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), block.scale);
                if T::HAS_MIN {
                    product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), block.min, product);
                }
                totals[r] = _mm512_fmadd_ps(product, _mm512_set1_ps(scale), totals[r]);
            }
        }
        totals
    }
}

/// `x << by`, with the immediate form of the instruction.
#[inline(always)]
unsafe fn shifted_left(x: __m512i, by: u32) -> __m512i {
    // SAFETY: inside an entry point of this path.
    unsafe {
        match by {
            2 => _mm512_slli_epi32::<2>(x),
            5 => _mm512_slli_epi32::<5>(x),
            6 => _mm512_slli_epi32::<6>(x),
            _ => _mm512_slli_epi32::<7>(x),
        }
    }
}

/// The sum of the lanes of each vector.
#[inline(always)]
pub(super) unsafe fn sums_of_4(v: [__m512; 4]) -> __m128 {
    // SAFETY: inside an entry point of this path.
    unsafe {
        let [a, b, c, d] = v.map(|v| {
            let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            _mm_add_ps(
                _mm256_castps256_ps128(half),
                _mm256_extractf128_ps::<1>(half),
            )
        });
        // (x0 + x2, x1 + x3) of two vectors each, then of all four.
        let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab))
    }
}

/// Stores the lane sums of the first `n` vectors at `out`.
#[inline(always)]
pub(super) unsafe fn store_sums(v: [__m512; 4], out: *mut f32, n: usize) {
    // SAFETY: the caller has `n` outputs there.
    unsafe {
        let sums = sums_of_4(v);
        if n == 4 {
            _mm_storeu_ps(out, sums);
        } else {
            _mm_mask_storeu_ps(out, (1 << n) - 1, sums);
        }
    }
}

/// A type that plain code unpacks in natural order.
#[derive(Clone, Copy)]
pub(super) struct Portable<U> {
    /// Within 128 bits, byte `4 j + k` to `4 k + j`.
    transpose: __m512i,
    /// 32-bit lane `4 i + a` from `4 a + i`.
    lanes: __m512i,
    unpack: PhantomData<U>,
}

impl<U: Unpack256> Type256 for Portable<U> {
    const BYTES: usize = U::BYTES;
    const OFFSET: u32 = 7;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn new() -> Self {
        const { assert!(!U::HAS_MIN) };
        // SAFETY: inside an entry point of this path.
        unsafe {
            Portable {
                transpose: bytes(&table!(b => b / 16 * 16 + 4 * (b % 4) + b % 16 / 4)),
                lanes: _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                unpack: PhantomData,
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller's promise.
        unsafe {
            let mut out = Unpacked::ZERO;
            U::unpack(&*block.cast::<U::Block>(), &mut out);
            let natural = std::array::from_fn(|i| {
                let v = _mm512_load_si512(out.codes.as_ptr().add(64 * i).cast());
                let v = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
                _mm512_shuffle_epi8(v, self.transpose)
            });
            Block {
                codes: planes(natural, self.lanes),
                scale: _mm512_loadu_ps(out.scale.as_ptr()),
                min: _mm512_setzero_ps(),
            }
        }
    }
}

/// Vector `i` of the input holds, in 128-bit lane `a`, 32-bit lane `4 i + a` of every plane; the
/// output is the planes.
#[inline(always)]
unsafe fn planes(v: [__m512i; 4], lanes: __m512i) -> [__m512i; 4] {
    // SAFETY: inside an entry point of this path.
    unsafe {
        let low = [
            _mm512_unpacklo_epi32(v[0], v[1]),
            _mm512_unpacklo_epi32(v[2], v[3]),
        ];
        let high = [
            _mm512_unpackhi_epi32(v[0], v[1]),
            _mm512_unpackhi_epi32(v[2], v[3]),
        ];
        // Lane `4 a + i` holds what belongs in lane `4 i + a`.
        [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ]
        .map(|v| _mm512_permutexvar_epi32(lanes, v))
    }
}
