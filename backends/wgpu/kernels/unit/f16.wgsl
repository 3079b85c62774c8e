fn @W@_decode8(row: u32, k: u32) -> W8 {
    let q = @W@_q4[row * (p.@W@_qs / 4u) + k / 8u];
    return W8(
        vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y)),
        vec4<f32>(unpack2x16float(q.z), unpack2x16float(q.w)));
}
