//! Products of F32, F16 and BF16 weights with f32 activations.
//!
//! Lane `i` of a product's partial sums takes elements `i`, `i + 16`, `i + 32` and so on, one after
//! the other, whatever the path and the number of rows, and the lanes are added at the end.

use ds4_formats::{GgmlType, quant};

use super::{Form, Job, Kernel, RowDots, RowPair, Scratch};
use crate::path::Cpu;
use crate::simd::{LANES, Lanes, Simd, SimdExt, dispatch};

/// Bytes of activations that stay in the second-level cache while weights pass by.
const CACHED_BYTES: usize = 384 << 10;
/// Most weight rows of a tile.
const TILE_WEIGHTS: usize = 4;

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

/// A type of weight without blocks.
trait FloatType {
    type Word: Copy + Default;

    fn load<S: Simd>(s: S, x: &Lanes<Self::Word>) -> S::F;
}

macro_rules! float_types {
    ($($ty:ident: $word:ty, $load:ident, $dots:ident;)*) => {
        $(
            struct $ty;

            impl FloatType for $ty {
                type Word = $word;

                #[inline(always)]
                fn load<S: Simd>(s: S, x: &Lanes<$word>) -> S::F {
                    s.$load(x)
                }
            }

            /// # Safety
            /// As [`super::RowDots`].
            unsafe fn $dots(cpu: Cpu, job: &Job<'_>, _: &mut Scratch) {
                #[inline(always)]
                fn body<S: Simd>(s: S, job: &Job<'_>) {
                    // SAFETY: the promise of the caller of the function around this one.
                    unsafe { row_dots::<S, $ty>(s, job) }
                }
                dispatch!(cpu, body(job: &Job<'_>));
            }
        )*
    };
}

float_types! {
    F32: f32, load, f32_dots;
    F16: u16, load_f16, f16_dots;
    Bf16: u16, load_bf16, bf16_dots;
}

/// Decodes a few rows at a time and multiplies those.
///
/// # Safety
/// As [`super::RowDots`].
unsafe fn decoded_dots(cpu: Cpu, job: &Job<'_>, scratch: &mut Scratch) {
    let (first, _) = scratch.split_at_mut(TILE_WEIGHTS * 4 * job.n_in);
    for (group, weights) in job.weights.chunks(TILE_WEIGHTS * job.row_bytes).enumerate() {
        let decoded = &mut first[..weights.len() / job.row_bytes * 4 * job.n_in];
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
        let f32_dots: RowDots = f32_dots;
        // SAFETY: the caller's promise, for rows that are now floats.
        unsafe { f32_dots(cpu, &job, &mut Scratch::default()) };
    }
}

/// # Safety
/// As [`super::RowDots`].
#[inline(always)]
unsafe fn row_dots<S: Simd, T: FloatType>(s: S, job: &Job<'_>) {
    let n_weights = job.n_weights();
    // Whole groups of six, of which the widest tiles are made.
    let cached = (CACHED_BYTES / job.act_stride / 6).max(1) * 6;
    for pairs in job.pairs.chunks(cached) {
        let mut o = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while o + TILE_WEIGHTS <= n_weights {
                rows::<S, T, TILE_WEIGHTS>(s, job, pairs, o);
                o += TILE_WEIGHTS;
            }
            if o + 2 <= n_weights {
                rows::<S, T, 2>(s, job, pairs, o);
                o += 2;
            }
            if o < n_weights {
                rows::<S, T, 1>(s, job, pairs, o);
            }
        }
    }
}

/// `W` weight rows times a few activation rows.
#[inline(always)]
unsafe fn rows<S: Simd, T: FloatType, const W: usize>(
    s: S,
    job: &Job<'_>,
    pairs: &[RowPair],
    o: usize,
) {
    // SAFETY: the caller's promise. Sums of a wide tile need as many registers.
    unsafe {
        let mut rest = pairs;
        if S::TILE_ROWS * S::TILE_VECTORS >= 16 {
            let (sixes, left) = rest.as_chunks::<6>();
            for group in sixes {
                tile::<S, T, W, 6>(s, job, *group, o);
            }
            rest = left;
        }
        if S::TILE_ROWS >= 4 {
            let (twos, left) = rest.as_chunks::<2>();
            for group in twos {
                tile::<S, T, W, 2>(s, job, *group, o);
            }
            rest = left;
        }
        for pair in rest {
            tile::<S, T, W, 1>(s, job, [*pair], o);
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, T: FloatType, const W: usize, const R: usize>(
    s: S,
    job: &Job<'_>,
    pairs: [RowPair; R],
    o: usize,
) {
    // SAFETY: the caller's promise: rows of `n_in` elements on both sides, activations aligned as
    // floats are. Weights lie wherever the file has them.
    unsafe {
        let acts = pairs.map(|pair| job.act(pair).cast::<f32>());
        let mut weights = [job
            .weights
            .as_ptr()
            .add(o * job.row_bytes)
            .cast::<T::Word>(); W];
        for w in 1..W {
            weights[w] = weights[w - 1].byte_add(job.row_bytes);
        }
        let mut sums = [[s.zero(); R]; W];
        let whole = job.n_in / LANES * LANES;
        for k in (0..whole).step_by(LANES) {
            for w in 0..W {
                let weight = weights[w].add(k).cast::<Lanes<T::Word>>().read_unaligned();
                let weight = T::load(s, &weight);
                for r in 0..R {
                    let act = s.load(&*acts[r].add(k).cast::<Lanes>());
                    sums[w][r] = s.fma(weight, act, sums[w][r]);
                }
            }
        }
        let left = job.n_in - whole;
        if left > 0 {
            for w in 0..W {
                let mut lanes = [T::Word::default(); LANES];
                let from = weights[w].add(whole).cast::<u8>();
                let n_bytes = left * size_of::<T::Word>();
                std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr().cast(), n_bytes);
                let weight = T::load(s, &lanes);
                for r in 0..R {
                    let act = std::slice::from_raw_parts(acts[r].add(whole), left);
                    sums[w][r] = s.fma(weight, s.load_part(act), sums[w][r]);
                }
            }
        }
        for r in 0..R {
            let out = job.out(pairs[r], o);
            if W == TILE_WEIGHTS {
                let sums = [sums[0][r], sums[1 % W][r], sums[2 % W][r], sums[3 % W][r]];
                out.cast::<[f32; 4]>().write_unaligned(s.sums(sums));
            } else {
                for w in 0..W {
                    *out.add(w) = s.sum(sums[w][r]);
                }
            }
        }
    }
}
