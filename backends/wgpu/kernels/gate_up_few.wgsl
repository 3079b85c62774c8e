// hidden = weight * silu(min(g, clamp)) * clamp(u, ±clamp) for a few rows: a workgroup takes 32
// hidden values of one expert of one row, a subgroup PER rows of both matrices at a time. ROUTED: of
// the row's `k` experts, those in `lo .. hi`, times their weights; with ROUTES the workgroup finds
// them itself. QUANTISED: 8-bit codes as well.
struct P { n: u32, n_in: u32, n_out: u32, k: u32, lo: u32, hi: u32, limit: f32, gate_qs: u32, gate_ss: u32, up_qs: u32, up_ss: u32, scale: f32 }
var<immediate> p: P;
const ROWS: u32 = 1u;
//!include rows
//!include swiglu
//!include quantise_block
//!weight gate 1
//!weight up 3
@group(0) @binding(5) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(6) var<storage, read> x_scales: array<f32>;
@group(0) @binding(9) var<storage, read_write> hidden: array<f32>;
@group(0) @binding(10) var<storage, read_write> hidden_codes: array<u32>;
@group(0) @binding(11) var<storage, read_write> hidden_scales: array<f32>;
//!when ROUTES false routes_given
//!when ROUTES true routes_here
//!when LOCAL false x_global
//!when LOCAL true x_local
//!product gate
//!product up
var<workgroup> results: array<f32, 32>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) sub_lane: u32,
    @builtin(subgroup_id) sub: u32,
    @builtin(num_subgroups) n_subs: u32,
    @builtin(subgroup_size) width: u32,
) {
    let r = wg.y / p.k;
    if is_pad(r) { return; }
    take_x(lane, r * p.n_in / X_LEN);
    prepare(lane);
    let route = route_of(wg.y, wg.x == 0u && wg.y % p.k == 0u, lane, sub, sub_lane, width);
    var row = wg.x * 32u;
    var end = p.n_out;
    if ROUTED {
        if route.expert < p.lo || route.expert >= p.hi { return; }
        row += (route.expert - p.lo) * p.n_out;
        end = (route.expert - p.lo + 1u) * p.n_out;
    }
    var x_at: array<u32, 1>;
    x_at[0] = select(r * p.n_in / X_LEN, 0u, LOCAL);
    for (var base = sub * PER; base < 32u; base += n_subs * PER) {
        var g: array<f32, PER>;
        var u: array<f32, PER>;
        for (var i = 0u; i < PER; i++) { g[i] = 0.0; u[i] = 0.0; }
//!repeat STEPS 1
        multiply_gate(&g, row + base, end, sub_lane + @I@u * SUBGROUP, &x_at);
        multiply_up(&u, row + base, end, sub_lane + @I@u * SUBGROUP, &x_at);
//!end
        if STEPS == 0u {
            for (var unit = sub_lane; unit < p.n_in / gate_UNIT; unit += width) {
                multiply_gate(&g, row + base, end, unit, &x_at);
                multiply_up(&u, row + base, end, unit, &x_at);
            }
        }
        for (var i = 0u; i < PER; i++) {
            let value = swiglu(subgroupAdd(g[i]), subgroupAdd(u[i]), p.limit, route.weight);
            if sub_lane == 0u && base + i < 32u { results[base + i] = value; }
        }
    }
    workgroupBarrier();
    let c = wg.x * 32u + lane;
    var value = 0.0;
    if lane < 32u { value = results[lane]; }
    if QUANTISED {
        let scale = quantise_block(lane, value);
        if lane < 32u && c < p.n_out {
            let at = wg.y * p.n_out + c;
            if lane == 0u { hidden_scales[at / 32u] = scale; }
            if (lane & 3u) == 0u { hidden_codes[at / 4u] = packed_codes(lane); }
        }
    }
    if lane < 32u && c < p.n_out { hidden[wg.y * p.n_out + c] = value; }
}
