// A unit is 16 bytes of codes: two runs of 16 elements, 32 apart.
const @W@_RUNS: u32 = 2u;
const @W@_UNIT: u32 = 32u;
const @W@_LOW: bool = true;
fn @W@_byte(s: u32, i: u32) -> u32 { return (@W@_s[s + 1u + i / 4u] >> (8u * (i & 3u))) & 0xffu; }
fn @W@_scale_min(s: u32, j: u32) -> vec2<f32> {
    if j < 4u {
        return vec2<f32>(f32(@W@_byte(s, j) & 63u), f32(@W@_byte(s, j + 4u) & 63u));
    }
    let both = @W@_byte(s, j + 4u);
    return vec2<f32>(
        f32((both & 15u) | ((@W@_byte(s, j - 4u) >> 6u) << 4u)),
        f32((both >> 4u) | ((@W@_byte(s, j) >> 6u) << 4u)));
}
fn @W@_unit(row: u32, u: u32) -> Unit {
    let block = u / 8u;
    let m = (u / 2u) & 3u;
    let h = u & 1u;
    let q = @W@_q4[row * (p.@W@_qs / 4u) + u];
    let s = row * p.@W@_ss + block * 4u;
    let d = unpack2x16float(@W@_s[s]);
    let a = d * @W@_scale_min(s, 2u * m);
    let b = d * @W@_scale_min(s, 2u * m + 1u);
    let mask = vec4<u32>(0x0f0f0f0fu);
    let low = q & mask;
    let high = (q >> vec4<u32>(4u)) & mask;
    let at = block * 16u + m * 4u + h;
    return Unit(low, high, low, high, vec4<f32>(a.x, b.x, 0.0, 0.0), vec4<f32>(a.y, b.y, 0.0, 0.0),
        vec4<u32>(at, at + 2u, at, at));
}
