// Codes: 16 words for 256 elements, as in the file. Scales: 5 words, 16 bytes of scale and min
// nibbles, then d and dmin.
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let block = k / 256u;
    let e = k % 256u;
    let at = row * p.@W@_qs + block * 16u + (e / 128u) * 8u + (e % 32u) / 4u;
    let shift = 2u * ((e % 128u) / 32u);
    let s = row * p.@W@_ss + block * 5u;
    let sub = e / 16u;
    let nibbles = (@W@_s[s + sub / 4u] >> (8u * (sub & 3u))) & 0xffu;
    let d = unpack2x16float(@W@_s[s + 4u]);
    let scale = d.x * f32(nibbles & 15u);
    let low = vec4<f32>(d.y * f32(nibbles >> 4u));
    return W8(
        scale * vec4<f32>(unpack4xU8((@W@_q[at] >> shift) & 0x03030303u)) - low,
        scale * vec4<f32>(unpack4xU8((@W@_q[at + 1u] >> shift) & 0x03030303u)) - low);
}
