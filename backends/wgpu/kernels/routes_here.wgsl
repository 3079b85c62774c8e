// The routes of a row from the router's products, found by every workgroup for itself; the first one
// of the row leaves them for what follows. scores = sqrt(softplus(products)); the experts are those
// of the token (HASHED) or the ones with the largest scores + bias, of equal ones the lowest.
//!include softplus
@group(0) @binding(7) var<storage, read> products: array<f32>;
@group(0) @binding(8) var<storage, read> choice: array<u32>;
@group(0) @binding(12) var<storage, read_write> experts: array<u32>;
@group(0) @binding(13) var<storage, read_write> weights: array<f32>;
struct Route { expert: u32, weight: f32 }
// Filled up with what is below every score.
const N_BIASED: u32 = (N_EXPERTS + 3u) / 4u;
var<workgroup> expert_scores: array<f32, N_EXPERTS>;
var<workgroup> biased: array<vec4<f32>, N_BIASED>;
var<workgroup> ranks: array<atomic<u32>, N_EXPERTS>;
var<workgroup> chosen: array<u32, N_EXPERTS>;

fn route_of(pair: u32, first: bool, lane: u32) -> Route {
    let r = pair / p.k;
    for (var e = lane; e < 4u * N_BIASED; e += WG) {
        var above = -3.4e38;
        if e < N_EXPERTS {
            let score = sqrt(softplus(products[r * N_EXPERTS + e]));
            expert_scores[e] = score;
            if !HASHED { above = score + bitcast<f32>(choice[e]); }
            atomicStore(&ranks[e], 0u);
        }
        biased[e / 4u][e & 3u] = above;
    }
    if HASHED && lane < p.k {
        chosen[lane] = min(choice[row_token(r) * p.k + lane], N_EXPERTS - 1u);
    }
    workgroupBarrier();
    if !HASHED {
        // Lanes beyond the experts take other parts of the comparisons.
        let parts = max(WG / N_EXPERTS, 1u);
        let each = (N_BIASED + parts - 1u) / parts;
        for (var i = lane; i < N_EXPERTS * parts; i += WG) {
            let e = i % N_EXPERTS;
            let mine = biased[e / 4u][e & 3u];
            var rank = 0u;
            let begin = (i / N_EXPERTS) * each;
            for (var v = begin; v < min(begin + each, N_BIASED); v++) {
                let s = biased[v];
                let ids = vec4<u32>(4u * v) + vec4<u32>(0u, 1u, 2u, 3u);
                let before = (s > vec4<f32>(mine)) | ((s == vec4<f32>(mine)) & (ids < vec4<u32>(e)));
                let n = select(vec4<u32>(0u), vec4<u32>(1u), before);
                rank += n.x + n.y + n.z + n.w;
            }
            atomicAdd(&ranks[e], rank);
        }
        workgroupBarrier();
        for (var e = lane; e < N_EXPERTS; e += WG) {
            let rank = atomicLoad(&ranks[e]);
            if rank < p.k { chosen[rank] = e; }
        }
        workgroupBarrier();
    }
    var sum = 0.0;
    for (var i = 0u; i < p.k; i++) { sum += expert_scores[chosen[i]]; }
    let factor = p.scale / max(sum, 1.1754944e-38);
    if first && lane < p.k {
        experts[r * p.k + lane] = chosen[lane];
        weights[r * p.k + lane] = expert_scores[chosen[lane]] * factor;
    }
    let expert = chosen[pair % p.k];
    return Route(expert, expert_scores[expert] * factor);
}
