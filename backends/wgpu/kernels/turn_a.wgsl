// hc_post in place, and the partial sums of the next mix: a workgroup takes 64 channels of a row's
// four streams, a lane two of them. POST: whether there is a sublayer to post; otherwise the streams
// are only read. Partial sums of a workgroup: the products with the 24 rows of `fn`, then the ten
// products of two streams, (0,0) (1,0) (1,1) (2,0) ...
struct P { n: u32, n_embd: u32, n_parts: u32, w_qs: u32 }
var<immediate> p: P;
const N_HC: u32 = 4u;
const N_GATES: u32 = 24u;
const N_SUMS: u32 = 34u;
//!include rows
@group(0) @binding(1) var<storage, read> y: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> gates: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<u32>;
@group(0) @binding(4) var<storage, read_write> streams: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> sums: array<f32>;

var<workgroup> shared_sums: array<f32, 1088>;

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) sub_lane: u32,
    @builtin(subgroup_id) sub: u32,
    @builtin(num_subgroups) n_subs: u32,
) {
    let r = wg.y;
    if is_pad(r) { return; }
    let pairs = p.n_embd / 2u;
    let c = wg.x * 32u + lane;
    let s0 = r * N_HC * pairs + c;
    var v: array<vec2<f32>, 4>;
    for (var j = 0u; j < N_HC; j++) {
        v[j] = vec2<f32>(0.0);
        if c < pairs { v[j] = streams[s0 + j * pairs]; }
    }
    if POST {
        let g0 = r * N_GATES;
        var y_c = vec2<f32>(0.0);
        if c < pairs { y_c = y[r * pairs + c]; }
        var next: array<vec2<f32>, 4>;
        for (var k = 0u; k < N_HC; k++) {
            next[k] = gates[g0 + N_HC + k] * y_c;
            for (var j = 0u; j < N_HC; j++) { next[k] += gates[g0 + (2u + j) * N_HC + k] * v[j]; }
        }
        for (var k = 0u; k < N_HC; k++) {
            v[k] = next[k];
            if c < pairs { streams[s0 + k * pairs] = next[k]; }
        }
    }
    var at = 0u;
    for (var g = 0u; g < N_GATES; g++) {
        var sum = 0.0;
        if c < pairs {
            for (var j = 0u; j < N_HC; j++) {
                sum += dot(unpack2x16float(w[g * p.w_qs + j * pairs + c]), v[j]);
            }
        }
        sum = subgroupAdd(sum);
        if sub_lane == 0u { shared_sums[sub * N_SUMS + at] = sum; }
        at++;
    }
    for (var i = 0u; i < N_HC; i++) {
        for (var j = 0u; j <= i; j++) {
            let sum = subgroupAdd(dot(v[i], v[j]));
            if sub_lane == 0u { shared_sums[sub * N_SUMS + at] = sum; }
            at++;
        }
    }
    workgroupBarrier();
    for (var i = lane; i < N_SUMS; i += 32u) {
        var sum = 0.0;
        for (var s = 0u; s < n_subs; s++) { sum += shared_sums[s * N_SUMS + i]; }
        sums[(r * p.n_parts + wg.x) * N_SUMS + i] = sum;
    }
}
