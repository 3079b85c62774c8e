// Codes: 16 words for 256 elements, the pairs of indices and signs of the file. Scales: f16, two a
// word. The grid is two words for each of its 256 rows.
fn @W@_signed(word: u32, signs: u32) -> vec4<f32> {
    let v = vec4<f32>(unpack4xU8(word));
    return select(v, -v, (vec4<u32>(signs) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
}
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let block = k / 256u;
    let at = row * p.@W@_qs + (k / 32u) * 2u;
    let l = (k % 32u) / 8u;
    let index = (@W@_q[at] >> (8u * l)) & 255u;
    let word = @W@_q[at + 1u];
    let code = (word >> (7u * l)) & 127u;
    let signs = code | ((countOneBits(code) & 1u) << 7u);
    let d = unpack2x16float(@W@_s[row * p.@W@_ss + block / 2u])[block & 1u];
    let scale = d * (0.5 + f32(word >> 28u)) * 0.25;
    return W8(
        scale * @W@_signed(iq2_xxs_grid[2u * index], signs),
        scale * @W@_signed(iq2_xxs_grid[2u * index + 1u], signs >> 4u));
}
