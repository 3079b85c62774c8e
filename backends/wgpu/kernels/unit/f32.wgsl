fn @W@_decode8(row: u32, k: u32) -> W8 {
    let at = row * (p.@W@_qs / 4u) + k / 4u;
    return W8(bitcast<vec4<f32>>(@W@_q4[at]), bitcast<vec4<f32>>(@W@_q4[at + 1u]));
}
