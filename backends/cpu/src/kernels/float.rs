//! Products of F32, F16 and BF16 weights with f32 activations.
//!
//! Lane `i` of a product's partial sums takes elements `i`, `i + N`, `i + 2 N` and so on, one after
//! the other, whatever the number of rows, and the lanes are added at the end.

use ds4_formats::{GgmlType, quant};

use super::{Form, Job, Kernel, RowPair, Scratch};
use crate::lanes::{Lanes, on_every_path};
use crate::path::Cpu;

/// Activation rows that stay in the second-level cache while weights pass by.
const CACHED_ROWS: usize = 24;
/// Most weight rows of a tile.
const TILE_WEIGHTS: usize = 4;

/// A type of weight without blocks.
pub(crate) trait FloatType {
    /// Bytes of an element.
    const BYTES: usize;

    /// # Safety
    /// As [`Lanes`]; a vector of elements lies at `from`.
    unsafe fn load<L: Lanes>(from: *const u8) -> L;
}

macro_rules! float_types {
    ($($name:ident: $bytes:literal, $load:ident;)*) => {
        $(
            struct $name;

            impl FloatType for $name {
                const BYTES: usize = $bytes;

                #[inline(always)]
                unsafe fn load<L: Lanes>(from: *const u8) -> L {
                    // SAFETY: the caller's promise.
                    unsafe { L::$load(from.cast()) }
                }
            }
        )*
    };
}

float_types! {
    F32: 4, load;
    F16: 2, load_f16;
    Bf16: 2, load_bf16;
}

on_every_path! {
    unsafe fn f32_dots(job: &Job<'_>, _scratch: &mut Scratch) = f32_rows;
    unsafe fn f16_dots(job: &Job<'_>, _scratch: &mut Scratch) = f16_rows;
    unsafe fn bf16_dots(job: &Job<'_>, _scratch: &mut Scratch) = bf16_rows;
}

/// The kernel of a type with activations in f32: of a type without blocks, or of any type when its
/// activations must not be quantised.
pub(crate) fn kernel(ty: GgmlType) -> Kernel {
    Kernel {
        form: Form::F32,
        step: 2,
        row_dots: match ty {
            GgmlType::F32 => f32_dots,
            GgmlType::F16 => f16_dots,
            GgmlType::BF16 => bf16_dots,
            _ => decoded_dots,
        },
        panel: None,
    }
}

macro_rules! bodies {
    ($($name:ident: $ty:ty;)*) => {
        $(
            /// # Safety
            /// As [`super::RowDots`], inside an entry point of the path of `L`.
            #[inline(always)]
            unsafe fn $name<L: Lanes>(job: &Job<'_>, _: &mut Scratch) {
                // SAFETY: the caller's promise.
                unsafe { row_dots::<L, $ty>(job) }
            }
        )*
    };
}

bodies! {
    f32_rows: F32;
    f16_rows: F16;
    bf16_rows: Bf16;
}

/// Decodes a few rows at a time and multiplies those.
///
/// # Safety
/// As [`super::RowDots`].
unsafe fn decoded_dots(cpu: Cpu, job: &Job<'_>, scratch: &mut Scratch) {
    let (rows, rest) = scratch.split_at_mut(TILE_WEIGHTS * 4 * job.n_in);
    let _ = rest;
    for (group, weights) in job.weights.chunks(TILE_WEIGHTS * job.row_bytes).enumerate() {
        let n = weights.len() / job.row_bytes;
        let decoded = &mut rows[..n * 4 * job.n_in];
        // SAFETY: scratch is aligned, and every bit pattern is a float.
        let floats = unsafe { decoded.align_to_mut::<f32>().1 };
        quant::decode_row(job.ty, weights, floats);
        let job = Job {
            ty: GgmlType::F32,
            weights: decoded,
            row_bytes: 4 * job.n_in,
            out: job.out.wrapping_add(group * TILE_WEIGHTS),
            ..*job
        };
        // SAFETY: the caller's promise, for rows that are now floats.
        unsafe { f32_dots(cpu, &job, &mut Scratch::default()) };
    }
}

/// # Safety
/// As [`super::RowDots`], inside an entry point of the path of `L`.
#[inline(always)]
unsafe fn row_dots<L: Lanes, T: FloatType>(job: &Job<'_>) {
    let n_weights = job.n_weights();
    for pairs in job.pairs.chunks(CACHED_ROWS) {
        let mut o = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while o + TILE_WEIGHTS <= n_weights {
                rows::<L, T, TILE_WEIGHTS>(job, pairs, o);
                o += TILE_WEIGHTS;
            }
            if o + 2 <= n_weights {
                rows::<L, T, 2>(job, pairs, o);
                o += 2;
            }
            while o < n_weights {
                rows::<L, T, 1>(job, pairs, o);
                o += 1;
            }
        }
    }
}

/// `W` weight rows times a few activation rows.
#[inline(always)]
unsafe fn rows<L: Lanes, T: FloatType, const W: usize>(job: &Job<'_>, pairs: &[RowPair], o: usize) {
    // SAFETY: the caller's promise. Sums of a wide tile need as many registers.
    unsafe {
        let mut rest = pairs;
        if L::REGISTERS >= 32 {
            let (sixes, left) = rest.as_chunks::<6>();
            for group in sixes {
                tile::<L, T, W, 6>(job, *group, o);
            }
            rest = left;
        }
        let (twos, left) = rest.as_chunks::<2>();
        for group in twos {
            tile::<L, T, W, 2>(job, *group, o);
        }
        for pair in left {
            tile::<L, T, W, 1>(job, [*pair], o);
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, T: FloatType, const W: usize, const R: usize>(
    job: &Job<'_>,
    pairs: [RowPair; R],
    o: usize,
) {
    // SAFETY: the caller's promise: rows of `n_in` elements on both sides.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair).cast::<f32>());
        let mut weights = [job.weights.as_ptr().add(o * job.row_bytes); W];
        for w in 1..W {
            weights[w] = weights[w - 1].add(job.row_bytes);
        }
        let mut sums = [[L::splat(0.0); R]; W];
        let whole = job.n_in / L::N * L::N;
        let mut k = 0;
        while k < whole {
            for w in 0..W {
                let weight = T::load::<L>(weights[w].add(T::BYTES * k));
                for r in 0..R {
                    sums[w][r] = weight.mul_add(L::load(acts[r].add(k)), sums[w][r]);
                }
            }
            k += L::N;
        }
        let left = job.n_in - whole;
        if left > 0 {
            for w in 0..W {
                let mut padded = [0u8; 64];
                let from = weights[w].add(T::BYTES * whole);
                std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), T::BYTES * left);
                let weight = T::load::<L>(padded.as_ptr());
                for r in 0..R {
                    let act = L::load_part(acts[r].add(whole), left);
                    sums[w][r] = weight.mul_add(act, sums[w][r]);
                }
            }
        }
        for r in 0..R {
            let out = job.out(pairs[r], o);
            if W == 4 {
                let sums = [sums[0][r], sums[1 % W][r], sums[2 % W][r], sums[3 % W][r]];
                out.cast::<[f32; 4]>().write_unaligned(L::sums(sums));
            } else {
                for w in 0..W {
                    *out.add(w) = sums[w][r].sum();
                }
            }
        }
    }
}
