// Stores the rows' projections, `kv` then `gate`, at `position % n_ring` of their slot's frontier
// ring; of a segment longer than the ring only the last rows.
struct P { n: u32, dim: u32, n_ring: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> kv: array<f32>;
@group(0) @binding(2) var<storage, read> gate: array<f32>;
@group(0) @binding(3) var<storage, read_write> frontier: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    let c = id.x;
    if c >= p.dim || is_pad(r) || row_end(r) - r > p.n_ring { return; }
    let at = (row_slot(r) * p.n_ring + row_position(r) % p.n_ring) * 2u * p.dim + c;
    frontier[at] = kv[r * p.dim + c];
    frontier[at + p.dim] = gate[r * p.dim + c];
}
