// x = sum_j pre[j] * streams[j].
struct P { n: u32, n_hc: u32, n_embd: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> streams: array<f32>;
@group(0) @binding(2) var<storage, read> gates: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    let r = id.y;
    if c >= p.n_embd || is_pad(r) { return; }
    let g0 = r * p.n_hc * (2u + p.n_hc);
    var sum = 0.0;
    for (var j = 0u; j < p.n_hc; j++) { sum += gates[g0 + j] * streams[(r * p.n_hc + j) * p.n_embd + c]; }
    x[r * p.n_embd + c] = sum;
}
