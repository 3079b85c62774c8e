// out[r] = sum of the row's `k` pairs, in their order.
struct P { n: u32, width: u32, k: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> pairs: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    if id.x >= p.width || is_pad(r) { return; }
    var sum = 0.0;
    for (var i = 0u; i < p.k; i++) { sum += pairs[(r * p.k + i) * p.width + id.x]; }
    out[r * p.width + id.x] = sum;
}
