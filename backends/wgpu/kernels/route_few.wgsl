// The routes of a few rows from the router's products: a workgroup for a row.
struct P { n: u32, k: u32, scale: f32 }
var<immediate> p: P;
//!include rows
//!include routes_here

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) sub_lane: u32,
    @builtin(subgroup_id) sub: u32,
    @builtin(subgroup_size) width: u32,
) {
    if is_pad(wg.x) { return; }
    _ = route_of(wg.x * p.k, true, lane, sub, sub_lane, width);
}
