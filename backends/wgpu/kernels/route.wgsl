// The router of a row from its products: scores = sqrt(softplus(products)), the experts by token
// (HASHED) or by the largest scores + bias, and their weights. One workgroup for a row.
struct P { n: u32, k: u32, scale: f32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include softplus
@group(0) @binding(1) var<storage, read> choice: array<u32>;
@group(0) @binding(2) var<storage, read> products: array<f32>;
@group(0) @binding(3) var<storage, read_write> experts: array<u32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;

var<workgroup> scores: array<f32, N_EXPERTS>;
// Filled up with what is below every score.
var<workgroup> biased: array<f32, N_EXPERTS + 8u>;
var<workgroup> chosen: array<u32, N_EXPERTS>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    for (var e = lane; e < N_EXPERTS; e += WG) {
        let score = sqrt(softplus(products[r * N_EXPERTS + e]));
        scores[e] = score;
        if !HASHED { biased[e] = score + bitcast<f32>(choice[e]); }
    }
    if lane < 8u { biased[N_EXPERTS + lane] = -3.4e38; }
    if HASHED && lane < p.k {
        chosen[lane] = min(choice[row_token(r) * p.k + lane], N_EXPERTS - 1u);
    }
    workgroupBarrier();
    if !HASHED {
        for (var e = lane; e < N_EXPERTS; e += WG) {
            let mine = biased[e];
            var rank = 0u;
            for (var first = 0u; first < N_EXPERTS; first += 8u) {
                for (var i = 0u; i < 8u; i++) {
                    let other = first + i;
                    let s = biased[other];
                    rank += select(0u, 1u, s > mine || (s == mine && other < e));
                }
            }
            if rank < p.k { chosen[rank] = e; }
        }
        workgroupBarrier();
    }
    if lane < p.k {
        var sum = 0.0;
        for (var i = 0u; i < p.k; i++) { sum += scores[chosen[i]]; }
        let at = r * p.k + lane;
        experts[at] = chosen[lane];
        weights[at] = p.scale * scores[chosen[lane]] / max(sum, 1.1754944e-38);
    }
}
