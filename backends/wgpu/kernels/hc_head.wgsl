// The streams' weighted sum before the output norm: one workgroup for a row.
struct P { n: u32, n_hc: u32, n_embd: u32, rms_eps: f32, hc_eps: f32, w_qs: u32, w_ss: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include reduce
//!decode w 1
@group(0) @binding(3) var<storage, read> base: array<f32>;
@group(0) @binding(4) var<storage, read> scale: array<f32>;
@group(0) @binding(5) var<storage, read> streams: array<f32>;
@group(0) @binding(6) var<storage, read_write> h: array<f32>;
//!include hc_mix

var<workgroup> pre: array<f32, 16>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    let inv = inverse_norm(r, lane);
    for (var j = 0u; j < p.n_hc; j++) {
        let mix = stream_dot(r, j, lane) * inv;
        if lane == 0u { pre[j] = sigmoid(mix * scale[0] + base[j]) + p.hc_eps; }
    }
    workgroupBarrier();
    for (var c = lane; c < p.n_embd; c += WG) {
        var sum = 0.0;
        for (var j = 0u; j < p.n_hc; j++) { sum += pre[j] * streams[(r * p.n_hc + j) * p.n_embd + c]; }
        h[r * p.n_embd + c] = sum;
    }
}
