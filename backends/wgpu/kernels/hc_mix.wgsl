// Products of a row's flattened streams.
fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }

// rsqrt(mean(v²) + rms_eps).
fn inverse_norm(r: u32, lane: u32) -> f32 {
    let width = p.n_hc * p.n_embd;
    var sum = 0.0;
    for (var c = lane; c < width; c += WG) {
        let x = streams[r * width + c];
        sum += x * x;
    }
    return 1.0 / sqrt(sum_all(lane, sum) / f32(width) + p.rms_eps);
}

// Row `g` of the weight times the streams of row `r`.
fn stream_dot(r: u32, g: u32, lane: u32) -> f32 {
    let width = p.n_hc * p.n_embd;
    let v = r * width;
    var sum = 0.0;
    for (var k = lane * 8u; k < width; k += WG * 8u) {
        let w = w_decode8(g, k);
        if k + 8u <= width {
            let a = vec4<f32>(streams[v + k], streams[v + k + 1u], streams[v + k + 2u], streams[v + k + 3u]);
            let b = vec4<f32>(streams[v + k + 4u], streams[v + k + 5u], streams[v + k + 6u], streams[v + k + 7u]);
            sum += dot(w.a, a) + dot(w.b, b);
        } else {
            for (var i = 0u; i < width - k; i++) {
                sum += select(w.b[i & 3u], w.a[i & 3u], i < 4u) * streams[v + k + i];
            }
        }
    }
    return sum_all(lane, sum);
}
