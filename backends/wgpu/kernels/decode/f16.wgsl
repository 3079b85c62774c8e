fn @W@_decode8(row: u32, k: u32) -> W8 {
    let at = row * p.@W@_qs + k / 2u;
    return W8(
        vec4<f32>(unpack2x16float(@W@_q[at]), unpack2x16float(@W@_q[at + 1u])),
        vec4<f32>(unpack2x16float(@W@_q[at + 2u]), unpack2x16float(@W@_q[at + 3u])));
}
