// The exponent of the smallest power of two that is at least `x`, a positive number.
fn ceil_log2(x: f32) -> i32 {
    let bits = bitcast<u32>(x);
    return i32(bits >> 23u) - 127 + select(0, 1, (bits & 0x7fffffu) != 0u);
}
fn exp2i(e: i32) -> f32 { return bitcast<f32>(u32(e + 127) << 23u); }

// The nearest E4M3 value of `x`, ties to the even code; beyond 448 it saturates.
fn round_e4m3(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let magnitude = min(bitcast<f32>(bits & 0x7fffffffu), 448.0);
    var value: f32;
    if magnitude < 0.015625 {
        // Steps of 2^-9 below the smallest normal number.
        value = round(magnitude * 512.0) * 0.001953125;
    } else {
        let m = bitcast<u32>(magnitude);
        value = bitcast<f32>((m + 0x7ffffu + ((m >> 20u) & 1u)) & 0xfff00000u);
    }
    return bitcast<f32>(bitcast<u32>(value) | (bits & 0x80000000u));
}

// The nearest E2M1 value of `x`, ties to the even code; beyond 6 it saturates.
fn round_e2m1(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let m = bitcast<f32>(bits & 0x7fffffffu);
    var value = 6.0;
    if m <= 0.25 { value = 0.0; }
    else if m < 0.75 { value = 0.5; }
    else if m <= 1.25 { value = 1.0; }
    else if m < 1.75 { value = 1.5; }
    else if m <= 2.5 { value = 2.0; }
    else if m < 3.5 { value = 3.0; }
    else if m <= 5.0 { value = 4.0; }
    return bitcast<f32>(bitcast<u32>(value) | (bits & 0x80000000u));
}

// The scale of a block of attention rows: 448 is the largest E4M3 value, 1e-4 the least maximum.
fn kv_exponent(amax: f32) -> i32 { return ceil_log2(max(amax, 1e-4) * 0.002232142857142857); }

// The scale of a block of index rows; the least exponent is that of a normal number.
fn index_exponent(amax: f32) -> i32 { return max(ceil_log2(amax * 0.16666667163372040), -126); }
