// A unit is eight elements.
fn @W@_raw(row: u32, u: u32) -> Raw {
    return Raw(@W@_q4[row * (p.@W@_qs / 4u) + u], vec4<u32>(0u));
}
//!rest
const UNIT: u32 = 8u;
fn prepare(lane: u32) {}
fn place(k: u32, c: u32) -> u32 { return k + c; }
fn put(at: u32, raw: Raw) {
    left[at] = vec4<f16>(vec4<f32>(unpack2x16float(raw.q.x), unpack2x16float(raw.q.y)));
    left[at + 1u] = vec4<f16>(vec4<f32>(unpack2x16float(raw.q.z), unpack2x16float(raw.q.w)));
}
