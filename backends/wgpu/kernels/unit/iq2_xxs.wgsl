// A unit is two groups of 32: four runs of 16 elements, each two rows of the grid.
const @W@_RUNS: u32 = 4u;
const @W@_UNIT: u32 = 64u;
const @W@_LOW: bool = false;
// Negates the bytes that a nibble has bits for. Magnitudes are above zero, so that negating a byte
// carries into no other.
fn @W@_negate(word: u32, signs: u32) -> u32 {
    let bits = ((signs & 15u) * 0x00204081u) & 0x01010101u;
    return (word ^ (bits * 255u)) + bits;
}
fn @W@_run(indices: u32, signs: u32) -> vec4<u32> {
    let a = grid[indices & 255u];
    let b = grid[(indices >> 8u) & 255u];
    return vec4<u32>(
        @W@_negate(a.x, signs),
        @W@_negate(a.y, signs >> 4u),
        @W@_negate(b.x, signs >> 8u),
        @W@_negate(b.y, signs >> 12u));
}
fn @W@_unit(row: u32, u: u32) -> Unit {
    let block = u / 4u;
    let q = @W@_q4[row * (p.@W@_qs / 4u) + u];
    let s = row * p.@W@_ss + block * 2u;
    let d = unpack2x16float(@W@_s[s + 1u]).x * 0.25;
    let nibbles = @W@_s[s] >> (8u * (u & 3u));
    let a = d * (0.5 + f32(nibbles & 15u));
    let b = d * (0.5 + f32((nibbles >> 4u) & 15u));
    return Unit(
        @W@_run(q.x, q.y), @W@_run(q.x >> 16u, q.y >> 16u),
        @W@_run(q.z, q.w), @W@_run(q.z >> 16u, q.w >> 16u),
        vec4<f32>(a, a, b, b), vec4<f32>(0.0),
        vec4<u32>(4u * u, 4u * u + 1u, 4u * u + 2u, 4u * u + 3u));
}
