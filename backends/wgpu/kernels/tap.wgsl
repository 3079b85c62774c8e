// The mean over the streams, as block `at` of a row of the taps.
struct P { n: u32, n_hc: u32, n_embd: u32, at: u32, width: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> streams: array<f32>;
@group(0) @binding(2) var<storage, read_write> taps: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    let r = id.y;
    if c >= p.n_embd || is_pad(r) { return; }
    var sum = 0.0;
    for (var j = 0u; j < p.n_hc; j++) { sum += streams[(r * p.n_hc + j) * p.n_embd + c]; }
    taps[r * p.width + p.at * p.n_embd + c] = sum / f32(p.n_hc);
}
