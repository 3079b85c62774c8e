// streams'[k] = post[k] * y + sum_j comb[j, k] * streams[j], in place. A geometry has at most 16 streams.
struct P { n: u32, n_hc: u32, n_embd: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> gates: array<f32>;
@group(0) @binding(3) var<storage, read_write> streams: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    let r = id.y;
    if c >= p.n_embd || is_pad(r) { return; }
    let g0 = r * p.n_hc * (2u + p.n_hc);
    let s0 = r * p.n_hc * p.n_embd + c;
    let y_c = y[r * p.n_embd + c];
    var old: array<f32, 16>;
    for (var j = 0u; j < p.n_hc; j++) { old[j] = streams[s0 + j * p.n_embd]; }
    for (var k = 0u; k < p.n_hc; k++) {
        var mixed = 0.0;
        for (var j = 0u; j < p.n_hc; j++) { mixed += gates[g0 + (2u + j) * p.n_hc + k] * old[j]; }
        streams[s0 + k * p.n_embd] = gates[g0 + p.n_hc + k] * y_c + mixed;
    }
}
