// A unit is two groups of 32. The grid and the signs of four elements are tables of halves.
fn @W@_raw(row: u32, u: u32) -> Raw {
    let s = row * p.@W@_ss + (u / 4u) * 2u;
    return Raw(@W@_q4[row * (p.@W@_qs / 4u) + u], vec4<u32>(@W@_s[s] >> (8u * (u & 3u)), @W@_s[s + 1u], 0u, 0u));
}
//!rest
const UNIT: u32 = 64u;
var<workgroup> grid: array<vec4<f16>, 512>;
var<workgroup> signs: array<vec4<f16>, 16>;
fn prepare(lane: u32) {
    for (var i = lane; i < 512u; i += WG) { grid[i] = vec4<f16>(vec4<f32>(unpack4xU8(iq2_xxs_grid[i]))); }
    if lane < 16u {
        signs[lane] = select(vec4<f16>(1.0h), vec4<f16>(-1.0h),
            (vec4<u32>(lane) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
    }
    workgroupBarrier();
}
fn place(k: u32, c: u32) -> u32 { return k + c; }
fn eight(at: u32, index: u32, sign: u32, scale: f16) {
    left[at] = grid[2u * index] * (signs[sign & 15u] * scale);
    left[at + 1u] = grid[2u * index + 1u] * (signs[(sign >> 4u) & 15u] * scale);
}
fn group(at: u32, indices: u32, sign: u32, scale: f16) {
    eight(at, indices & 255u, sign, scale);
    eight(at + 2u, (indices >> 8u) & 255u, sign >> 8u, scale);
    eight(at + 4u, (indices >> 16u) & 255u, sign >> 16u, scale);
    eight(at + 6u, indices >> 24u, sign >> 24u, scale);
}
fn put(at: u32, raw: Raw) {
    let d = unpack2x16float(raw.s.y).x * 0.25;
    group(at, raw.q.x, raw.q.y, f16(d * (0.5 + f32(raw.s.x & 15u))));
    group(at + 8u, raw.q.z, raw.q.w, f16(d * (0.5 + f32((raw.s.x >> 4u) & 15u))));
}
