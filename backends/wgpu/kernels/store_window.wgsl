// Stores the rows of `kv` at `position % n_ring` of their slot's ring; of a segment longer than the
// ring only the last rows. Widths are even.
struct P { n: u32, width: u32, n_ring: u32 }
var<immediate> p: P;
//!include rows
//!include bf16
@group(0) @binding(1) var<storage, read> kv: array<f32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;
//!include store_element

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    let c = id.x * 2u;
    if c >= p.width || is_pad(r) || row_end(r) - r > p.n_ring { return; }
    let at = (row_slot(r) * p.n_ring + row_position(r) % p.n_ring) * p.width + c;
    store_pair(at, kv[r * p.width + c], kv[r * p.width + c + 1u]);
}
