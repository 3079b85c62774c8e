// out[r] = sum_i W_{experts[r, i]} hidden[r, i] for a few rows: a workgroup takes WG_ROWS outputs, a
// subgroup PER of them at a time. The experts `lo .. hi` are here; later parts add to what the first
// wrote.
struct P { n: u32, n_in: u32, n_out: u32, lo: u32, hi: u32, first: u32, w_qs: u32, w_ss: u32 }
var<immediate> p: P;
const ROWS: u32 = 1u;
//!include rows
//!weight w 1
@group(0) @binding(3) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(4) var<storage, read> x_scales: array<f32>;
@group(0) @binding(5) var<storage, read> experts: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
//!product w
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
        if o0 + base >= p.n_out { break; }
        var sums: array<f32, PER>;
        for (var i = 0u; i < PER; i++) { sums[i] = 0.0; }
        for (var e = 0u; e < K_USED; e++) {
            let expert = experts[r * K_USED + e];
            if expert < p.lo || expert >= p.hi { continue; }
            let row = (expert - p.lo) * p.n_out;
            var x_at: array<u32, 1>;
            x_at[0] = (r * K_USED + e) * p.n_in / X_LEN;
//!repeat STEPS 1
            multiply_w(&sums, row + o0 + base, row + p.n_out, sub_lane + @I@u * SUBGROUP, &x_at);
//!end
            if STEPS == 0u {
                for (var u = sub_lane; u < p.n_in / w_UNIT; u += width) {
                    multiply_w(&sums, row + o0 + base, row + p.n_out, u, &x_at);
                }
            }
        }
        for (var i = 0u; i < PER; i++) {
            let total = subgroupAdd(sums[i]);
            if sub_lane == 0u && base + i < WG_ROWS { results[base + i] = total; }
        }
    }
    workgroupBarrier();
    let o = o0 + lane;
    if lane < WG_ROWS && o < p.n_out {
        let at = r * p.n_out + o;
        if p.first != 0u { out[at] = results[lane]; } else { out[at] += results[lane]; }
    }
}
