// score[c] = sum_h w[h] * scale * max(0, iq[h] · ik[c]) for the rows `begin ..`: a lane for an index row.
struct P { n: u32, begin: u32, n_heads: u32, dim: u32, scale: f32, width: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> iq: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> cache: array<u32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

fn key(at: u32) -> f32 {
    if BF16 {
        let word = cache[at / 2u];
        return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (at & 1u) != 0u));
    }
    return bitcast<f32>(cache[at]);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = p.begin + id.y;
    let c = id.x;
    if is_pad(r) || c >= (row_position(r) + 1u) / 4u { return; }
    let k0 = (row_base(r) / 4u + c) * p.dim;
    var score = 0.0;
    for (var h = 0u; h < p.n_heads; h++) {
        let q0 = (r * p.n_heads + h) * p.dim;
        var dot = 0.0;
        for (var i = 0u; i < p.dim; i++) { dot += iq[q0 + i] * key(k0 + i); }
        score += weights[r * p.n_heads + h] * p.scale * max(dot, 0.0);
    }
    scores[id.y * p.width + c] = score;
}
