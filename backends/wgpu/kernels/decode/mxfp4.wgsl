// Codes: 4 words for 32 elements, as in the file. Scales: a byte for 32 elements.
fn @W@_levels(nibbles: u32) -> vec4<f32> {
    let c = unpack4xU8(nibbles);
    let m = c & vec4<u32>(7u);
    // 0, 0.5, 1, 1.5, 2, 3, 4, 6: a bit of fraction below two of exponent.
    let e = m >> vec4<u32>(1u);
    let f = vec4<f32>(m & vec4<u32>(1u));
    let normal = (1.0 + 0.5 * f) * bitcast<vec4<f32>>((e + vec4<u32>(126u)) << vec4<u32>(23u));
    let v = select(normal, 0.5 * f, e == vec4<u32>(0u));
    return select(v, -v, (c & vec4<u32>(8u)) != vec4<u32>(0u));
}
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let block = k / 32u;
    let e = k % 32u;
    let at = row * p.@W@_qs + block * 4u + (e % 16u) / 4u;
    let shift = 4u * (e / 16u);
    let byte = (@W@_s[row * p.@W@_ss + block / 4u] >> (8u * (block & 3u))) & 0xffu;
    // 2^(byte - 127) in two factors, because the smallest is no normal number.
    let scale = bitcast<f32>(max(byte, 1u) << 23u) * select(1.0, 0.5, byte == 0u);
    return W8(
        scale * @W@_levels((@W@_q[at] >> shift) & 0x0f0f0f0fu),
        scale * @W@_levels((@W@_q[at + 1u] >> shift) & 0x0f0f0f0fu));
}
