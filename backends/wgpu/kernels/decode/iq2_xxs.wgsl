// Codes: 16 words for 256 elements, pairs of four grid indices and four sign bytes. Scales: two
// words, the nibbles of the 8 groups and the f16 scale. The grid has two words for each of 256 rows.
fn @W@_signed(word: u32, signs: u32) -> vec4<f32> {
    let v = vec4<f32>(unpack4xU8(word));
    return select(v, -v, (vec4<u32>(signs) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
}
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let block = k / 256u;
    let group = (k / 32u) & 7u;
    let at = row * p.@W@_qs + (k / 32u) * 2u;
    let shift = 8u * ((k / 8u) & 3u);
    let index = (@W@_q[at] >> shift) & 255u;
    let signs = @W@_q[at + 1u] >> shift;
    let s = row * p.@W@_ss + block * 2u;
    let d = unpack2x16float(@W@_s[s + 1u]).x;
    let scale = d * (0.5 + f32((@W@_s[s] >> (4u * group)) & 15u)) * 0.25;
    return W8(
        scale * @W@_signed(iq2_xxs_grid[2u * index], signs),
        scale * @W@_signed(iq2_xxs_grid[2u * index + 1u], signs >> 4u));
}
