// The mix of a hyper-connection: one workgroup for a row.
struct P { n: u32, n_hc: u32, n_embd: u32, n_sinkhorn: u32, rms_eps: f32, hc_eps: f32, w_qs: u32, w_ss: u32 }
var<immediate> p: P;
const WG: u32 = 64u;
//!include rows
//!include reduce
//!decode w 1
@group(0) @binding(3) var<storage, read> base: array<f32>;
@group(0) @binding(4) var<storage, read> scale: array<f32>;
@group(0) @binding(5) var<storage, read> streams: array<f32>;
@group(0) @binding(6) var<storage, read_write> gates: array<f32>;
//!include hc_mix

fn normalise_columns(c0: u32) {
    for (var k = 0u; k < p.n_hc; k++) {
        var sum = 0.0;
        for (var j = 0u; j < p.n_hc; j++) { sum += gates[c0 + j * p.n_hc + k]; }
        for (var j = 0u; j < p.n_hc; j++) { gates[c0 + j * p.n_hc + k] /= sum + p.hc_eps; }
    }
}

// Makes the matrix [source, destination] at `c0` nearly doubly stochastic.
fn sinkhorn(c0: u32) {
    for (var j = 0u; j < p.n_hc; j++) {
        let row = c0 + j * p.n_hc;
        var top = gates[row];
        for (var k = 1u; k < p.n_hc; k++) { top = max(top, gates[row + k]); }
        var sum = 0.0;
        for (var k = 0u; k < p.n_hc; k++) {
            let e = exp(gates[row + k] - top);
            gates[row + k] = e;
            sum += e;
        }
        for (var k = 0u; k < p.n_hc; k++) { gates[row + k] = gates[row + k] / sum + p.hc_eps; }
    }
    normalise_columns(c0);
    for (var step = 1u; step < p.n_sinkhorn; step++) {
        for (var j = 0u; j < p.n_hc; j++) {
            let row = c0 + j * p.n_hc;
            var sum = 0.0;
            for (var k = 0u; k < p.n_hc; k++) { sum += gates[row + k]; }
            for (var k = 0u; k < p.n_hc; k++) { gates[row + k] /= sum + p.hc_eps; }
        }
        normalise_columns(c0);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    let n_gates = p.n_hc * (2u + p.n_hc);
    let g0 = r * n_gates;
    let inv = inverse_norm(r, lane);
    for (var g = 0u; g < n_gates; g++) {
        let mix = stream_dot(r, g, lane) * inv;
        if lane == 0u {
            if g < p.n_hc {
                gates[g0 + g] = sigmoid(mix * scale[0] + base[g]) + p.hc_eps;
            } else if g < 2u * p.n_hc {
                gates[g0 + g] = 2.0 * sigmoid(mix * scale[1] + base[g]);
            } else {
                gates[g0 + g] = mix * scale[2] + base[g];
            }
        }
    }
    if lane == 0u { sinkhorn(g0 + 2u * p.n_hc); }
}
