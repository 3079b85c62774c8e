// A unit is 16 codes of one block.
fn @W@_raw(row: u32, u: u32) -> Raw {
    let s = @W@_s[row * p.@W@_ss + u / 4u] >> (8u * (u & 2u));
    return Raw(@W@_q4[row * (p.@W@_qs / 4u) + u], vec4<u32>(s));
}
//!rest
const UNIT: u32 = 16u;
fn prepare(lane: u32) {}
fn place(k: u32, c: u32) -> u32 { return k + c; }
// Bytes become floats as the low bits of 2^23, which is cheaper than a conversion.
fn signed(word: u32, d: f32) -> vec4<f16> {
    let b = word ^ 0x80808080u;
    let bits = (vec4<u32>(b, b >> 8u, b >> 16u, b >> 24u) & vec4<u32>(255u)) | vec4<u32>(0x4b000000u);
    return vec4<f16>((bitcast<vec4<f32>>(bits) - vec4<f32>(8388736.0)) * d);
}
fn put(at: u32, raw: Raw) {
    let d = unpack2x16float(raw.s.x).x;
    left[at] = signed(raw.q.x, d);
    left[at + 1u] = signed(raw.q.y, d);
    left[at + 2u] = signed(raw.q.z, d);
    left[at + 3u] = signed(raw.q.w, d);
}
