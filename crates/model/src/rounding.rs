//! The rounding of cache rows that the model was trained with (model.md 8).

use ds4_formats::small_float::{
    bf16_from_f32, bf16_to_f32, e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3,
};

/// Channels that share a scale in attention rows.
pub const KV_ROUND_BLOCK: usize = 64;
/// Channels that share a scale in index rows.
pub const INDEX_ROUND_BLOCK: usize = 32;

/// Largest E4M3 magnitude.
const E4M3_MAX: f32 = 448.0;
/// Largest E2M1 magnitude.
const E2M1_MAX: f32 = 6.0;
/// Smallest maximum a block of an attention row is scaled by.
const KV_AMAX_FLOOR: f32 = 1e-4;
/// Smallest maximum a block of an index row is scaled by: 6 * 2^-126.
const INDEX_AMAX_FLOOR: f32 = 6.0 * f32::MIN_POSITIVE;

/// Exponent `e` of the smallest power of two that is at least `x`, a positive
/// normal number: its exponent field, plus one if any mantissa bit is set.
pub fn ceil_log2(x: f32) -> i32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    exponent + i32::from(bits & 0x007f_ffff != 0)
}

/// `2^e` for `e` in the range of normal numbers.
pub fn exp2i(e: i32) -> f32 {
    debug_assert!((-126..=127).contains(&e));
    f32::from_bits(((e + 127) as u32) << 23)
}

/// Exponent of the scale of one block of an attention row.
pub fn kv_scale_exponent(block: &[f32]) -> i32 {
    let amax = block.iter().fold(0f32, |m, x| m.max(x.abs()));
    ceil_log2(amax.max(KV_AMAX_FLOOR) * (1.0 / E4M3_MAX))
}

/// Exponent of the scale of one block of an index row.
pub fn index_scale_exponent(block: &[f32]) -> i32 {
    let amax = block.iter().fold(0f32, |m, x| m.max(x.abs()));
    // The product of the floor is 2^-126, or just under it: as a subnormal it
    // has exponent field 0 and a mantissa, which gives the same -126.
    ceil_log2(amax.max(INDEX_AMAX_FLOOR) * (1.0 / E2M1_MAX))
}

/// Rounds one attention row in place: all but the last `rope_dim` channels to
/// E4M3 in blocks of [`KV_ROUND_BLOCK`], the rest to bf16.
pub fn kv_round_row(row: &mut [f32], rope_dim: usize) {
    let split = row.len() - rope_dim;
    let (plain, rotated) = row.split_at_mut(split);
    for block in plain.chunks_mut(KV_ROUND_BLOCK) {
        let scale = exp2i(kv_scale_exponent(block));
        for x in block {
            let code = f32_to_e4m3((*x / scale).clamp(-E4M3_MAX, E4M3_MAX));
            *x = e4m3_to_f32(code) * scale;
        }
    }
    for x in rotated {
        *x = bf16_to_f32(bf16_from_f32(*x));
    }
}

/// Orthonormal Walsh-Hadamard transform in natural (Sylvester) order, in place.
pub fn hadamard(row: &mut [f32]) {
    let n = row.len();
    debug_assert!(n.is_power_of_two());
    let mut half = 1;
    while half < n {
        for start in (0..n).step_by(2 * half) {
            for i in start..start + half {
                let (a, b) = (row[i], row[i + half]);
                row[i] = a + b;
                row[i + half] = a - b;
            }
        }
        half *= 2;
    }
    let scale = (n as f32).powf(-0.5);
    for x in row {
        *x *= scale;
    }
}

/// Rounds one index row, or one head of an indexer query, in place.
pub fn index_round_row(row: &mut [f32]) {
    hadamard(row);
    for block in row.chunks_mut(INDEX_ROUND_BLOCK) {
        let scale = exp2i(index_scale_exponent(block));
        for x in block {
            let code = f32_to_e2m1((*x / scale).clamp(-E2M1_MAX, E2M1_MAX));
            *x = e2m1_to_f32(code) * scale;
        }
    }
}
