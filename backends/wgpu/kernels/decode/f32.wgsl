fn @W@_decode8(row: u32, k: u32) -> W8 {
    let at = row * p.@W@_qs + k;
    return W8(
        bitcast<vec4<f32>>(vec4<u32>(@W@_q[at], @W@_q[at + 1u], @W@_q[at + 2u], @W@_q[at + 3u])),
        bitcast<vec4<f32>>(vec4<u32>(@W@_q[at + 4u], @W@_q[at + 5u], @W@_q[at + 6u], @W@_q[at + 7u])));
}
