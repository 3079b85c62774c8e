@group(0) @binding(7) var<storage, read> experts: array<u32>;
@group(0) @binding(8) var<storage, read> weights: array<f32>;
struct Route { expert: u32, weight: f32 }
fn route_of(pair: u32, first: bool, lane: u32, sub: u32, sub_lane: u32, width: u32) -> Route {
    if !ROUTED { return Route(0u, 1.0); }
    return Route(experts[pair], weights[pair]);
}
