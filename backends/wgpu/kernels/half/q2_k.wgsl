// A unit is 16 bytes of codes: four runs of 16 elements, 32 apart. The columns of x stand in the
// same order.
fn @W@_raw(row: u32, u: u32) -> Raw {
    let n = (u / 2u) & 1u;
    let h = 8u * (u & 1u);
    let s = row * p.@W@_ss + (u / 4u) * 5u;
    let scales = vec2<u32>(@W@_s[s + 2u * n], @W@_s[s + 2u * n + 1u]) >> vec2<u32>(h);
    return Raw(@W@_q4[row * (p.@W@_qs / 4u) + u], vec4<u32>(scales, @W@_s[s + 4u], 0u));
}
//!rest
const UNIT: u32 = 64u;
fn prepare(lane: u32) {}
fn place(k: u32, c: u32) -> u32 {
    return (k & ~127u) + ((k / 64u) & 1u) * 16u + (c / 16u) * 32u + (c & 15u);
}
fn four(codes: u32, scale: f32, low: f32) -> vec4<f16> {
    let bits = (vec4<u32>(codes, codes >> 8u, codes >> 16u, codes >> 24u) & vec4<u32>(3u))
        | vec4<u32>(0x4b000000u);
    return vec4<f16>((bitcast<vec4<f32>>(bits) - vec4<f32>(8388608.0)) * scale - vec4<f32>(low));
}
fn run(at: u32, q: vec4<u32>, nibbles: u32, d: vec2<f32>) {
    let scale = d.x * f32(nibbles & 15u);
    let low = d.y * f32((nibbles >> 4u) & 15u);
    left[at] = four(q.x, scale, low);
    left[at + 1u] = four(q.y, scale, low);
    left[at + 2u] = four(q.z, scale, low);
    left[at + 3u] = four(q.w, scale, low);
}
fn put(at: u32, raw: Raw) {
    let d = unpack2x16float(raw.s.z);
    run(at, raw.q, raw.s.x, d);
    run(at + 4u, raw.q >> vec4<u32>(2u), raw.s.x >> 16u, d);
    run(at + 8u, raw.q >> vec4<u32>(4u), raw.s.y, d);
    run(at + 12u, raw.q >> vec4<u32>(6u), raw.s.y >> 16u, d);
}
