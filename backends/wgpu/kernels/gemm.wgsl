// Products of many rows: a workgroup takes BM rows of weights and BN rows of x, BK columns at a
// time, decoded into its memory. `gemm_float` or `gemm_matrix` multiplies.
const WG: u32 = 256u;
const BK: u32 = 32u;
//!include gemm_tile
//!decode a 1
//!decode b 3
@group(0) @binding(5) var<storage, read> x: array<vec4<f32>>;

fn load_weights(t: Tile, m: u32, k: u32) -> W8 {
    if GATED && (m & 8u) != 0u { return b_decode8(weight_row(t, m), k); }
    return a_decode8(weight_row(t, m), k);
}

fn load_x(t: Tile, j: u32, k: u32) -> W8 {
    if j >= t.count { return W8(vec4<f32>(0.0), vec4<f32>(0.0)); }
    var row = name_of(t, j);
    if MODE == 1u { row /= p.k; }
    let at = (row * p.x_width + t.x0 + k) / 4u;
    return W8(x[at], x[at + 1u]);
}
//!core

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile_of(wg);
    if t.count == 0u { return; }
    multiply(t, lane);
}
