// Stores `pooled` at its index, for every row that completes a compressed row. Widths are even.
struct P { n: u32, width: u32, ratio: u32 }
var<immediate> p: P;
//!include rows
//!include bf16
@group(0) @binding(1) var<storage, read> pooled: array<f32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;
//!include store_element

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    let c = id.x * 2u;
    let end = row_position(r) + 1u;
    if c >= p.width || is_pad(r) || end % p.ratio != 0u { return; }
    let row = row_base(r) / p.ratio + end / p.ratio - 1u;
    store_pair(row * p.width + c, pooled[r * p.width + c], pooled[r * p.width + c + 1u]);
}
