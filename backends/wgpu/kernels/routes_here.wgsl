// The routes of a row from the router's products, found by every workgroup for itself; the first one
// of the row leaves them for what follows. scores = sqrt(softplus(products)); the experts are those
// of the token (HASHED) or the ones with the largest scores + bias, of equal ones the lowest.
//!include softplus
//!include order
@group(0) @binding(7) var<storage, read> products: array<f32>;
@group(0) @binding(8) var<storage, read> choice: array<u32>;
@group(0) @binding(12) var<storage, read_write> experts: array<u32>;
@group(0) @binding(13) var<storage, read_write> weights: array<f32>;
struct Route { expert: u32, weight: f32 }
var<workgroup> expert_scores: array<f32, N_EXPERTS>;
// Words that order as scores + bias do, and 0 for what is chosen.
var<workgroup> keys: array<u32, N_EXPERTS>;
var<workgroup> chosen: array<u32, N_EXPERTS>;

fn route_of(pair: u32, first: bool, lane: u32, sub: u32, sub_lane: u32, width: u32) -> Route {
    let r = pair / p.k;
    for (var e = lane; e < N_EXPERTS; e += WG) {
        let score = sqrt(softplus(products[r * N_EXPERTS + e]));
        expert_scores[e] = score;
        if !HASHED { keys[e] = order(score + bitcast<f32>(choice[e])); }
    }
    if HASHED && lane < p.k {
        chosen[lane] = min(choice[row_token(r) * p.k + lane], N_EXPERTS - 1u);
    }
    workgroupBarrier();
    if !HASHED {
        // One subgroup takes the largest again and again; a lane has its own keys only.
        if sub == 0u {
//!when KEYS_EACH 0 routes_loop
//!when KEYS_EACH 8 routes_eight
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
