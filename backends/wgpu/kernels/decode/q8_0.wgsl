// Codes: 8 words for 32 elements. Scales: f16, two a word.
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let at = row * p.@W@_qs + k / 4u;
    let block = k / 32u;
    let d = unpack2x16float(@W@_s[row * p.@W@_ss + block / 2u])[block & 1u];
    return W8(d * vec4<f32>(unpack4xI8(@W@_q[at])), d * vec4<f32>(unpack4xI8(@W@_q[at + 1u])));
}
