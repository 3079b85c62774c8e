// x = weight * x * rsqrt(mean(x²) + eps), in place: one workgroup for a row.
struct P { n: u32, width: u32, eps: f32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include reduce
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    let x0 = r * p.width;
    var sum = 0.0;
    for (var c = lane; c < p.width; c += WG) { sum += x[x0 + c] * x[x0 + c]; }
    let inv = 1.0 / sqrt(sum_all(lane, sum) / f32(p.width) + p.eps);
    for (var c = lane; c < p.width; c += WG) { x[x0 + c] = weight[c] * (x[x0 + c] * inv); }
}
