// out[r] = sum_i W_{experts[r, i]} hidden[r, i] for a few rows: a workgroup takes WG_ROWS outputs, a
// subgroup PER of them at a time. SHARED: the shared expert's output is added. PARTED: the experts
// `lo .. hi` are here; later parts add to what the first wrote.
struct P { n: u32, n_in: u32, n_out: u32, lo: u32, hi: u32, first: u32, w_qs: u32, w_ss: u32, shared_qs: u32, shared_ss: u32, shared_in: u32 }
var<immediate> p: P;
const ROWS: u32 = 1u;
//!include rows
//!weight w 1
@group(0) @binding(3) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(4) var<storage, read> x_scales: array<f32>;
@group(0) @binding(5) var<storage, read> experts: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
//!when SHARED true shared_down
//!product w
//!when SHARED true shared_product
var<workgroup> results: array<f32, WG_ROWS>;

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
    prepare(lane);
    let o0 = wg.x * WG_ROWS;
    for (var base = sub * PER; base < WG_ROWS; base += n_subs * PER) {
        let o = o0 + base;
        if o >= p.n_out { break; }
        var sums: array<f32, PER>;
        for (var i = 0u; i < PER; i++) { sums[i] = 0.0; }
        var x_at: array<u32, 1>;
//!repeat K_USED 1
        let expert@I@ = experts[r * K_USED + @I@u];
//!end
//!repeat SHARED_STEPS 1
        x_at[0] = r * p.shared_in / X_LEN;
        multiply_shared(&sums, o, p.n_out, sub_lane + @I@u * SUBGROUP, &x_at);
//!end
//!repeat K_USED STEPS
        if !PARTED || (expert@A@ >= p.lo && expert@A@ < p.hi) {
            let row = (expert@A@ - p.lo) * p.n_out;
            x_at[0] = (r * K_USED + @A@u) * p.n_in / X_LEN;
            multiply_w(&sums, row + o, row + p.n_out, sub_lane + @B@u * SUBGROUP, &x_at);
        }
//!end
//!when STEPS 0 experts_down_loop
        for (var i = 0u; i < PER; i++) {
            let total = subgroupAdd(sums[i]);
            if sub_lane == 0u && base + i < WG_ROWS { results[base + i] = total; }
        }
    }
    workgroupBarrier();
    let o = o0 + lane;
    if lane < WG_ROWS && o < p.n_out {
        let at = r * p.n_out + o;
        if !PARTED || p.first != 0u { out[at] = results[lane]; } else { out[at] += results[lane]; }
    }
}
