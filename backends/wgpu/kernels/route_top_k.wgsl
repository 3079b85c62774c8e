// The `k` largest of scores + bias, of equal ones the lowest, in descending order: a lane for a row.
struct P { n: u32, n_experts: u32, k: u32, scale: f32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read_write> experts: array<u32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;
//!include mixing_weights

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.x;
    if r >= p.n || is_pad(r) { return; }
    var last = 3.4e38;
    var last_id = 0u;
    for (var i = 0u; i < p.k; i++) {
        var best = -3.4e38;
        var best_id = 0u;
        for (var e = 0u; e < p.n_experts; e++) {
            let s = scores[r * p.n_experts + e] + bias[e];
            // Behind the last one taken, and before the best so far.
            if (s < last || (s == last && e > last_id)) && s > best {
                best = s;
                best_id = e;
            }
        }
        experts[r * p.k + i] = best_id;
        last = best;
        last_id = best_id;
    }
    mixing_weights(r);
}
