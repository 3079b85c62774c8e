// out[r] = sum_i W_{experts[r, i]} hidden[r, i] for a few rows: a workgroup takes WG_ROWS
// outputs. SHARED: the shared expert's output is added. PARTED: the experts
// `lo .. hi` are here; later parts add to what the first wrote. The experts of an output are shared
// by HALVES subgroups, EXPERTS_EACH and SHARED_EACH turns of the shared expert's for each. TURN: the row
// goes into the streams as well.
struct P { n: u32, n_in: u32, n_out: u32, lo: u32, hi: u32, first: u32, w_qs: u32, w_ss: u32, shared_qs: u32, shared_ss: u32, shared_in: u32 }
var<immediate> p: P;
const ROWS: u32 = 1u;
const PER: u32 = 1u;
//!include rows
//!weight w 1
@group(0) @binding(3) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(4) var<storage, read> x_scales: array<f32>;
@group(0) @binding(5) var<storage, read> experts: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
//!when SHARED true shared_down
//!when LOCAL false x_global
//!when LOCAL true x_local
//!product w
//!when SHARED true shared_product
var<workgroup> results: array<f32, WG_ROWS * HALVES>;
//!when TURN true turn_here

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) sub_lane: u32,
    @builtin(subgroup_id) sub: u32,
    @builtin(num_subgroups) n_subs: u32,
    @builtin(subgroup_size) width: u32,
) {
    let r = wg.y;
    if is_pad(r) { return; }
    take_x(lane, r * K_USED * p.n_in / X_LEN);
    prepare(lane);
    let o0 = wg.x * WG_ROWS;
    for (var job = sub; job < WG_ROWS * HALVES; job += n_subs) {
        let o = o0 + job / HALVES;
        let share = job % HALVES;
        if o >= p.n_out { break; }
        var sums: array<f32, PER>;
        sums[0] = 0.0;
        var x_at: array<u32, 1>;
//!repeat EXPERTS_EACH 1
        let slot@I@ = r * K_USED + share * EXPERTS_EACH + @I@u;
        let expert@I@ = experts[slot@I@];
//!end
//!repeat SHARED_EACH 1
        x_at[0] = r * p.shared_in / X_LEN;
        multiply_shared(&sums, o, p.n_out, sub_lane + (share * SHARED_EACH + @I@u) * SUBGROUP, &x_at);
//!end
//!repeat EXPERTS_EACH STEPS
        if !PARTED || (expert@A@ >= p.lo && expert@A@ < p.hi) {
            let row = (expert@A@ - p.lo) * p.n_out;
            x_at[0] = (slot@A@ - select(0u, r * K_USED, LOCAL)) * p.n_in / X_LEN;
            multiply_w(&sums, row + o, row + p.n_out, sub_lane + @B@u * SUBGROUP, &x_at);
        }
//!end
//!when STEPS 0 experts_down_loop
        let total = subgroupAdd(sums[0]);
        if sub_lane == 0u { results[job] = total; }
    }
    workgroupBarrier();
    let o = o0 + lane;
    if lane < WG_ROWS && o < p.n_out {
        let at = r * p.n_out + o;
        var total = results[lane * HALVES];
        if HALVES == 2u { total += results[lane * HALVES + 1u]; }
        if !PARTED || p.first != 0u { out[at] = total; } else { out[at] += total; }
    }
//!when TURN true turn_now
}
