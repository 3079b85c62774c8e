// Window rows: norm, rotation, and rounding when ROUNDING is 1, in place or, when APART, from `raw`; STORED: also into the
// slots' rings, which is only done for steps so short that no row is overwritten that a row of the
// step still sees. One workgroup for a row.
struct P { n: u32, half_dim: u32, table: u32, eps: f32, hadamard: f32, n_ring: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include reduce
//!include bf16
//!include rounding
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read_write> kv: array<f32>;
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;
//!when APART true kv_raw
//!when APART false kv_own
//!include cache_row
//!include store_element

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    for (var c = lane; c < ROW_DIM; c += WG) { v[c] = raw_value(r * ROW_DIM + c); }
    workgroupBarrier();
    norm_rope_round(lane, r);
    for (var c = lane; c < ROW_DIM; c += WG) { kv[r * ROW_DIM + c] = v[c]; }
    if STORED {
        let at = (row_slot(r) * p.n_ring + row_position(r) % p.n_ring) * ROW_DIM;
        for (var c = 2u * lane; c < ROW_DIM; c += 2u * WG) { store_pair(at + c, v[c], v[c + 1u]); }
    }
}
