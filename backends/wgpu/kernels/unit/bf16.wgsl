fn @W@_decode8(row: u32, k: u32) -> W8 {
    let q = @W@_q4[row * (p.@W@_qs / 4u) + k / 8u];
    let low = bitcast<vec4<f32>>(q << vec4<u32>(16u));
    let high = bitcast<vec4<f32>>(q & vec4<u32>(0xffff0000u));
    return W8(vec4<f32>(low.x, high.x, low.y, high.y), vec4<f32>(low.z, high.z, low.w, high.w));
}
