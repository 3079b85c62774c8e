// Experts looked up by token: a lane for a row.
struct P { n: u32, n_experts: u32, k: u32, scale: f32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read_write> experts: array<u32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;
//!include mixing_weights

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.x;
    if r >= p.n || is_pad(r) { return; }
    for (var i = 0u; i < p.k; i++) {
        experts[r * p.k + i] = min(ids[row_token(r) * p.k + i], p.n_experts - 1u);
    }
    mixing_weights(r);
}
