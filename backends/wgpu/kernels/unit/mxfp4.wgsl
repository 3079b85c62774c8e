// A unit is one block of 32: the low nibbles, then the high ones, as twice their values.
const @W@_RUNS: u32 = 2u;
const @W@_UNIT: u32 = 32u;
const @W@_LOW: bool = false;
fn @W@_levels(nibbles: vec4<u32>) -> vec4<u32> {
    let one = vec4<u32>(0x01010101u);
    let m = nibbles & vec4<u32>(0x07070707u);
    let from4 = ((m >> vec4<u32>(2u)) & one) * 255u;
    let from6 = (((m >> vec4<u32>(2u)) & (m >> vec4<u32>(1u))) & one) * 255u;
    // 0, 1, 2, 3, 4, 6, 8, 12.
    let d = m + (m & vec4<u32>(0x03030303u) & from4) + 2u * (m & one & from6);
    let nonzero = (m | (m >> vec4<u32>(1u)) | (m >> vec4<u32>(2u))) & one;
    let sign = (nibbles >> vec4<u32>(3u)) & nonzero;
    return (d ^ (sign * 255u)) + sign;
}
fn @W@_unit(row: u32, u: u32) -> Unit {
    let q = @W@_q4[row * (p.@W@_qs / 4u) + u];
    let byte = (@W@_s[row * p.@W@_ss + u / 4u] >> (8u * (u & 3u))) & 0xffu;
    let scale = 0.5 * bitcast<f32>(max(byte, 1u) << 23u) * select(1.0, 0.5, byte == 0u);
    let mask = vec4<u32>(0x0f0f0f0fu);
    let low = @W@_levels(q & mask);
    let high = @W@_levels((q >> vec4<u32>(4u)) & mask);
    return Unit(low, high, low, high, vec4<f32>(scale), vec4<f32>(0.0),
        vec4<u32>(2u * u, 2u * u + 1u, 2u * u, 2u * u));
}
