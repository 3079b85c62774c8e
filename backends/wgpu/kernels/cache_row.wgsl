// A cache row in workgroup memory: norm, rotation of the last `2 * half_dim` channels, and rounding.
var<workgroup> v: array<f32, ROW_DIM>;

fn norm_rope_round(lane: u32, r: u32) {
    var sum = 0.0;
    for (var c = lane; c < ROW_DIM; c += WG) { sum += v[c] * v[c]; }
    let inv = 1.0 / sqrt(sum_all(lane, sum) / f32(ROW_DIM) + p.eps);
    let plain = ROW_DIM - 2u * p.half_dim;
    for (var c = lane; c < ROW_DIM; c += WG) { v[c] = norm[c] * (v[c] * inv); }
    workgroupBarrier();
    for (var i = lane; i < p.half_dim; i += WG) {
        let at = plain + 2u * i;
        let angle = row_angle(r, p.table, p.half_dim, i);
        let a = v[at];
        let b = v[at + 1u];
        v[at] = a * angle.x - b * angle.y;
        v[at + 1u] = a * angle.y + b * angle.x;
    }
    workgroupBarrier();
    if ROUNDING == 1u {
        var out: array<f32, (ROW_DIM + WG - 1u) / WG>;
        for (var c = lane; c < ROW_DIM; c += WG) {
            if c < plain {
                let first = c & ~63u;
                var amax = 0.0;
                for (var i = first; i < min(first + 64u, plain); i++) { amax = max(amax, abs(v[i])); }
                let e = kv_exponent(amax);
                out[c / WG] = round_e4m3(v[c] * exp2i(-e)) * exp2i(e);
            } else {
                out[c / WG] = bitcast<f32>(bf16_bits(v[c]) << 16u);
            }
        }
        workgroupBarrier();
        for (var c = lane; c < ROW_DIM; c += WG) { v[c] = out[c / WG]; }
        workgroupBarrier();
    }
    if ROUNDING == 2u {
        for (var len = 1u; len < ROW_DIM; len *= 2u) {
            for (var i = lane; i < ROW_DIM / 2u; i += WG) {
                let at = (i / len) * 2u * len + i % len;
                let a = v[at];
                let b = v[at + len];
                v[at] = a + b;
                v[at + len] = a - b;
            }
            workgroupBarrier();
        }
        var out: array<f32, (ROW_DIM + WG - 1u) / WG>;
        for (var c = lane; c < ROW_DIM; c += WG) {
            let first = c & ~31u;
            var amax = 0.0;
            for (var i = first; i < min(first + 32u, ROW_DIM); i++) {
                amax = max(amax, abs(v[i] * p.hadamard));
            }
            let e = index_exponent(amax);
            out[c / WG] = round_e2m1(v[c] * p.hadamard * exp2i(-e)) * exp2i(e);
        }
        workgroupBarrier();
        for (var c = lane; c < ROW_DIM; c += WG) { v[c] = out[c / WG]; }
        workgroupBarrier();
    }
}
