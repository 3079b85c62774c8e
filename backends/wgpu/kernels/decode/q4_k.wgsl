// Codes: 32 words for 256 elements, as in the file. Scales: 4 words, d and dmin, then 12 bytes of
// 6-bit scales and mins.
fn @W@_byte(s: u32, i: u32) -> u32 { return (@W@_s[s + 1u + i / 4u] >> (8u * (i & 3u))) & 0xffu; }
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let block = k / 256u;
    let e = k % 256u;
    let at = row * p.@W@_qs + block * 32u + (e / 64u) * 8u + (e % 32u) / 4u;
    let j = e / 32u;
    let shift = 4u * (j & 1u);
    let s = row * p.@W@_ss + block * 4u;
    var sc: u32;
    var mn: u32;
    if j < 4u {
        sc = @W@_byte(s, j) & 63u;
        mn = @W@_byte(s, j + 4u) & 63u;
    } else {
        let both = @W@_byte(s, j + 4u);
        sc = (both & 15u) | ((@W@_byte(s, j - 4u) >> 6u) << 4u);
        mn = (both >> 4u) | ((@W@_byte(s, j) >> 6u) << 4u);
    }
    let d = unpack2x16float(@W@_s[s]);
    let scale = d.x * f32(sc);
    let low = vec4<f32>(d.y * f32(mn));
    return W8(
        scale * vec4<f32>(unpack4xU8((@W@_q[at] >> shift) & 0x0f0f0f0fu)) - low,
        scale * vec4<f32>(unpack4xU8((@W@_q[at + 1u] >> shift) & 0x0f0f0f0fu)) - low);
}
