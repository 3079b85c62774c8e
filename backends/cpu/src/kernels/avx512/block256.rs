//! Products with the types of 256 elements a block.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::constants::{bytes, four, table};
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

impl Block {
    // SAFETY: every bit pattern is a vector.
    const ZERO: Block = unsafe { std::mem::zeroed() };
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

    /// Whether unpacking in registers is the fastest way for a few activation rows.
    const IN_REGISTERS: bool = true;

    /// # Safety
    /// As [`Type256::new`]; `block` is a whole block.
    unsafe fn unpack(&self, block: *const u8) -> Block;

    /// Unpacks `n_blocks` blocks to memory, [`Stored::BYTES`](Type256::BYTES) each.
    ///
    /// # Safety
    /// As [`Type256::new`]; the memory is there.
    #[inline(always)]
    unsafe fn store_row(&self, row: *const u8, n_blocks: usize, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            for b in 0..n_blocks {
                let block = self.unpack(row.add(b * Self::BYTES));
                Stored::<Self>::store(&block, to.add(b * Stored::<Self>::BYTES));
            }
        }
    }
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
                codes: four!(k => _mm512_loadu_si512(block.add(64 * k).cast())),
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
            _ if !T::IN_REGISTERS => many_rows(&ty, job, scratch),
            [a] => few_rows(&ty, job, [a]),
            [a, b] => few_rows(&ty, job, [a, b]),
            [a, b, c] => few_rows(&ty, job, [a, b, c]),
            [a, b, c, d] => few_rows(&ty, job, [a, b, c, d]),
            _ => many_rows(&ty, job, scratch),
        }
    }
}

/// Up to [`MAX_ROWS`] activation rows: blocks are unpacked in registers.
#[inline(always)]
unsafe fn few_rows<T: Type256, const R: usize>(ty: &T, job: &Job<'_>, pairs: [RowPair; R]) {
    // SAFETY: the caller's promise: weight rows are whole, activation rows have the form.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let n_weights = job.n_weights();
        let mut o = 0;
        while o < n_weights {
            let n = (n_weights - o).min(4);
            // Four sums at a time are reduced together; each in the order of a single one.
            let mut sums = [[_mm512_setzero_ps(); 4]; R];
            for i in 0..n {
                let row = job.weights.as_ptr().add((o + i) * job.row_bytes);
                let [totals] = totals(ty, [row], job.n_in, acts);
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

/// Activation rows that stay in the second-level cache while weights pass by.
const CACHED_ROWS: usize = 48;

/// More activation rows: two weight rows at a time are unpacked to scratch.
#[inline(always)]
unsafe fn many_rows<T: Type256>(ty: &T, job: &Job<'_>, scratch: &mut Scratch) {
    let n_blocks = job.n_in / 256;
    let stored_bytes = n_blocks * Stored::<T>::BYTES;
    let buffer = scratch[..2 * stored_bytes].as_mut_ptr();
    // SAFETY: the caller's promise, and the slice above for the scratch.
    unsafe {
        let stored = Stored::<T>::new();
        let n_weights = job.n_weights();
        for pairs in job.pairs.chunks(CACHED_ROWS) {
            let job = &Job { pairs, ..*job };
            for o in (0..n_weights).step_by(2) {
                let row = job.weights.as_ptr().add(o * job.row_bytes);
                // The next two rows arrive while these are multiplied.
                for line in (0..2 * job.row_bytes).step_by(64) {
                    let ahead = row.wrapping_add(2 * job.row_bytes + line);
                    _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                }
                ty.store_row(row, n_blocks, buffer);
                if o + 1 < n_weights {
                    ty.store_row(row.add(job.row_bytes), n_blocks, buffer.add(stored_bytes));
                    stored_rows(&stored, job, [buffer, buffer.add(stored_bytes)], o);
                } else {
                    stored_rows(&stored, job, [buffer], o);
                }
            }
        }
    }
}

/// `W` unpacked weight rows times every activation row.
#[inline(always)]
unsafe fn stored_rows<T: Type256, const W: usize>(
    ty: &T,
    job: &Job<'_>,
    rows: [*mut u8; W],
    o: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (fours, rest) = job.pairs.as_chunks::<MAX_ROWS>();
        for group in fours {
            stored_products(ty, job, rows, *group, o);
        }
        match *rest {
            [] => {}
            [a] => stored_products(ty, job, rows, [a], o),
            [a, b] => stored_products(ty, job, rows, [a, b], o),
            [a, b, c] => stored_products(ty, job, rows, [a, b, c], o),
            _ => unreachable!(),
        }
    }
}

#[inline(always)]
unsafe fn stored_products<T: Type256, const W: usize, const R: usize>(
    ty: &T,
    job: &Job<'_>,
    rows: [*mut u8; W],
    pairs: [RowPair; R],
    o: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair));
        let totals = totals(ty, rows.map(|row| row.cast_const()), job.n_in, acts);
        for w in 0..W {
            let mut sums = [_mm512_setzero_ps(); 4];
            sums[..R].copy_from_slice(&totals[w]);
            let sums: [f32; 4] = std::mem::transmute(sums_of_4(sums));
            for r in 0..R {
                *job.out(pairs[r], o + w) = sums[r];
            }
        }
    }
}

/// Sixteen partial sums of each of `W` weight rows times each of `R` activation rows.
#[inline(always)]
unsafe fn totals<T: Type256, const W: usize, const R: usize>(
    ty: &T,
    rows: [*const u8; W],
    n_in: usize,
    acts: [*const u8; R],
) -> [[__m512; R]; W] {
    // SAFETY: the caller's promise: whole rows of weights and of activations.
    unsafe {
        let mut totals = [[_mm512_setzero_ps(); R]; W];
        for b in 0..n_in / 256 {
            let mut blocks = [Block::ZERO; W];
            for w in 0..W {
                blocks[w] = ty.unpack(rows[w].add(b * T::BYTES));
            }
            for r in 0..R {
                let codes = acts[r].add(256 * b);
                let codes = four!(k => _mm512_loadu_si512(codes.add(64 * k).cast()));
                let sums = _mm512_loadu_si512(acts[r].add(q8k_sums(n_in) + 64 * b).cast());
                let scale = *acts[r].add(q8k_scales(n_in) + 4 * b).cast::<f32>();
                // Takes the offset of the codes back: -2^OFFSET times the activations' sum.
                let start = if T::OFFSET > 0 {
                    shifted_left(sums, T::OFFSET)
                } else {
                    _mm512_setzero_si512()
                };
                for w in 0..W {
                    let mut dot = start;
                    for k in 0..4 {
                        dot = _mm512_dpbusd_epi32(dot, blocks[w].codes[k], codes[k]);
                    }
                    let mut product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), blocks[w].scale);
                    if T::HAS_MIN {
                        product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), blocks[w].min, product);
                    }
                    totals[w][r] = _mm512_fmadd_ps(product, _mm512_set1_ps(scale), totals[w][r]);
                }
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

/// Sums of lanes `i`, `i + 4`, `i + 8` and `i + 12`.
#[inline(always)]
unsafe fn folded(v: __m512) -> __m128 {
    // SAFETY: inside an entry point of this path.
    unsafe {
        let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
        _mm_add_ps(
            _mm256_castps256_ps128(half),
            _mm256_extractf128_ps::<1>(half),
        )
    }
}

/// The sum of the lanes of each vector.
#[inline(always)]
pub(super) unsafe fn sums_of_4(v: [__m512; 4]) -> __m128 {
    // SAFETY: inside an entry point of this path.
    unsafe {
        let [a, b, c, d] = four!(i => folded(v[i]));
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

    // Wide loads of bytes that were just written narrowly have to wait for them; a row later they
    // do not.
    const IN_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn unpack(&self, block: *const u8) -> Block {
        // SAFETY: the caller's promise.
        unsafe {
            let mut out = Unpacked::ZERO;
            U::unpack(&*block.cast::<U::Block>(), &mut out);
            self.planes(&out)
        }
    }

    #[inline(always)]
    unsafe fn store_row(&self, row: *const u8, n_blocks: usize, to: *mut u8) {
        const { assert!(size_of::<Unpacked>() == Stored::<Self>::BYTES) };
        // SAFETY: the caller's promise; every bit pattern is an unpacked block, and scratch is
        // aligned for one.
        unsafe {
            let blocks = std::slice::from_raw_parts_mut(to.cast::<Unpacked>(), n_blocks);
            for (b, out) in blocks.iter_mut().enumerate() {
                U::unpack(&*row.add(b * U::BYTES).cast::<U::Block>(), out);
            }
            for out in blocks {
                Stored::<Self>::store(&self.planes(out), std::ptr::from_mut(out).cast());
            }
        }
    }
}

impl<U> Portable<U> {
    /// Natural order to planes.
    #[inline(always)]
    unsafe fn planes(&self, block: &Unpacked) -> Block {
        // SAFETY: inside an entry point of this path.
        unsafe {
            let natural = four!(i => {
                let v = _mm512_load_si512(block.codes.as_ptr().add(64 * i).cast());
                let v = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
                _mm512_shuffle_epi8(v, self.transpose)
            });
            Block {
                codes: planes(natural, self.lanes),
                scale: _mm512_loadu_ps(block.scale.as_ptr()),
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
        let v = [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ];
        four!(k => _mm512_permutexvar_epi32(lanes, v[k]))
    }
}
