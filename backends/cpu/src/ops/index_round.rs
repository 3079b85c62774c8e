use ds4_formats::small_float::E2M1_MAX;
use ds4_model::RowsImage;
use ds4_model::rounding::{INDEX_ROUND_BLOCK, exp2i, hadamard, index_scale_exponent};

use super::each_row;
use super::kv_round::round_block;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::simd::{LANES, Simd, SimdExt, dispatch};

pub(crate) fn index_round(cpu: &mut CpuBackend, rows: &RowsImage, x: &mut Buffer) {
    let (path, dim) = (cpu.cpu, cpu.geometry.index_dim);
    each_row(&mut cpu.pool, rows, x, |_, heads| {
        dispatch!(path, index_round_heads(dim: usize, heads: &mut [f32]));
    });
}

/// [`ds4_model::rounding::index_round_row`] of every `dim` channels.
#[inline(always)]
pub(crate) fn index_round_heads<S: Simd>(s: S, dim: usize, heads: &mut [f32]) {
    if (LANES..=SQUARE).contains(&dim) {
        for heads in heads.chunks_mut(SQUARE) {
            hadamard_square(s, dim, heads);
        }
    } else {
        heads.chunks_exact_mut(dim).for_each(hadamard);
    }
    for head in heads.chunks_exact_mut(dim) {
        for block in head.chunks_mut(INDEX_ROUND_BLOCK) {
            let amax = s.largest_magnitude(block);
            let exponent = index_scale_exponent(&[amax]);
            // 2^126 is the inverse of the least scale.
            let (scale, inverse) = (exp2i(exponent), exp2i(-exponent));
            round_block::<S, 0, 1>(s, scale, inverse, E2M1_MAX, block);
        }
    }
}

/// Channels of as many vectors as a vector has lanes.
const SQUARE: usize = LANES * LANES;

/// [`hadamard`] of every `dim` of at most [`SQUARE`] channels, the same additions in the same order:
/// first those of neighbours within a vector, which a transposition makes into whole vectors, then
/// those of whole vectors.
#[inline(always)]
fn hadamard_square<S: Simd>(s: S, dim: usize, heads: &mut [f32]) {
    let mut v = [s.zero(); LANES];
    for (v, x) in v.iter_mut().zip(heads.as_chunks::<LANES>().0) {
        *v = s.load(x);
    }
    v = s.transpose(v);
    v = butterflies::<S, 1>(s, v);
    v = butterflies::<S, 2>(s, v);
    v = butterflies::<S, 4>(s, v);
    v = butterflies::<S, 8>(s, v);
    v = s.transpose(v);
    if dim > LANES {
        v = butterflies::<S, 1>(s, v);
    }
    if dim > 2 * LANES {
        v = butterflies::<S, 2>(s, v);
    }
    if dim > 4 * LANES {
        v = butterflies::<S, 4>(s, v);
    }
    if dim > 8 * LANES {
        v = butterflies::<S, 8>(s, v);
    }
    let scale = s.splat((dim as f32).powf(-0.5));
    for (v, out) in v.into_iter().zip(heads.as_chunks_mut::<LANES>().0) {
        s.store(s.mul(v, scale), out);
    }
}

/// Sums and differences of the vectors whose numbers differ in the bit `HALF`.
#[inline(always)]
fn butterflies<S: Simd, const HALF: usize>(s: S, mut v: [S::F; LANES]) -> [S::F; LANES] {
    for i in 0..LANES {
        if i & HALF == 0 {
            let (a, b) = (v[i], v[i + HALF]);
            v[i] = s.add(a, b);
            v[i + HALF] = s.sub(a, b);
        }
    }
    v
}

#[cfg(test)]
mod tests {
    use ds4_model::rounding::index_round_row;

    use super::*;
    use crate::path::{Cpu, Path};

    #[test]
    fn heads_of_any_length_are_rounded_as_by_the_reference_bit_for_bit() {
        for cpu in Path::ALL.into_iter().filter_map(Cpu::new) {
            for dim in [16, 32, 64, 128, 256, 512] {
                for n_heads in [1, 2, 3, 64] {
                    let mut found: Vec<f32> = (0..n_heads * dim)
                        .map(|i| (i as f32 * 0.7).sin() * 10f32.powi((i / 32 % 9) as i32 - 4))
                        .collect();
                    let mut expected = found.clone();
                    expected.chunks_exact_mut(dim).for_each(index_round_row);
                    let heads = &mut found[..];
                    dispatch!(cpu, index_round_heads(dim: usize, heads: &mut [f32]));
                    assert_eq!(found, expected, "{:?}: {n_heads} x {dim}", cpu.path());
                }
            }
        }
    }
}
