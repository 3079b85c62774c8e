fn @W@_pair(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}
fn @W@_decode8(row: u32, k: u32) -> W8 {
    let at = row * p.@W@_qs + k / 2u;
    return W8(
        vec4<f32>(@W@_pair(@W@_q[at]), @W@_pair(@W@_q[at + 1u])),
        vec4<f32>(@W@_pair(@W@_q[at + 2u]), @W@_pair(@W@_q[at + 3u])));
}
