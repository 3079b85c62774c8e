// out[r] = x[source[r]].
struct P { n: u32, width: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    if id.x >= p.width || is_pad(r) { return; }
    out[r * p.width + id.x] = x[row_source(r) * p.width + id.x];
}
