// In f32, four by four values a lane.
const BM: u32 = 64u;
const STRIDE: u32 = 68u;
var<workgroup> memory: array<f32, 2u * BK * STRIDE>;

fn multiply(t: Tile, lane: u32) {
    let m = lane / 4u;
    let k8 = (lane & 3u) * 8u;
    let m4 = (lane & 15u) * 4u;
    let j4 = (lane / 16u) * 4u;
    var sums: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) { sums[i] = vec4<f32>(0.0); }
    for (var k = 0u; k < p.n_in; k += BK) {
        var w = W8(vec4<f32>(0.0), vec4<f32>(0.0));
        var v = w;
        if k + k8 < p.n_in {
            w = load_weights(t, m, k + k8);
            v = load_x(t, m, k + k8);
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            memory[(k8 + i) * STRIDE + m] = w.a[i];
            memory[(k8 + 4u + i) * STRIDE + m] = w.b[i];
            memory[(BK + k8 + i) * STRIDE + m] = v.a[i];
            memory[(BK + k8 + 4u + i) * STRIDE + m] = v.b[i];
        }
        workgroupBarrier();
        for (var kk = 0u; kk < BK; kk++) {
            let at = kk * STRIDE + m4;
            let a = vec4<f32>(memory[at], memory[at + 1u], memory[at + 2u], memory[at + 3u]);
            let from_x = (BK + kk) * STRIDE + j4;
            for (var i = 0u; i < 4u; i++) { sums[i] += a * memory[from_x + i]; }
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        for (var c = 0u; c < 4u; c++) { memory[(j4 + i) * 65u + m4 + c] = sums[i][c]; }
    }
    workgroupBarrier();
    if GATED {
        for (var i = lane; i < 32u * BN; i += WG) {
            let h = i & 31u;
            let at = (i / 32u) * 65u + (h / 8u) * 16u + (h & 7u);
            emit(t, h, i / 32u, memory[at], memory[at + 8u]);
        }
    } else {
        for (var i = lane; i < BM * BN; i += WG) {
            emit(t, i & 63u, i / 64u, memory[(i / 64u) * 65u + (i & 63u)], 0.0);
        }
    }
}
