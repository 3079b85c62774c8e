// gate[r] += ape[position[r] % ratio].
struct P { n: u32, dim: u32, ratio: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> ape: array<f32>;
@group(0) @binding(2) var<storage, read_write> gate: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    if id.x >= p.dim || is_pad(r) { return; }
    gate[r * p.dim + id.x] += ape[(row_position(r) % p.ratio) * p.dim + id.x];
}
