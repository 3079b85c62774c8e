// scores = sqrt(softplus(scores)), in place.
struct P { n: u32, width: u32 }
var<immediate> p: P;
//!include rows
//!include softplus
@group(0) @binding(1) var<storage, read_write> scores: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    if id.x >= p.width || is_pad(r) { return; }
    let at = r * p.width + id.x;
    scores[at] = sqrt(softplus(scores[at]));
}
