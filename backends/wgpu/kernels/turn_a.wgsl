// hc_post in place, and the partial sums of the next mix: a workgroup takes 64 channels of a row's
// four streams, a lane two of them, eight teams of 32 lanes three rows of `fn` each. POST: whether
// there is a sublayer to post; otherwise the streams are only read. Partial sums of a workgroup: the
// products with the 24 rows of `fn`, then the ten of two streams, (0,0) (1,0) (1,1) (2,0) ...
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

// A lane's part of every sum; rows are 33 long so that lanes lie in different banks.
var<workgroup> parts: array<f32, 1122>;

fn product(g: u32, c: u32, pairs: u32, v: array<vec2<f32>, 4>) -> f32 {
    let at = g * p.w_qs + c;
    let a = unpack2x16float(w[at]);
    let b = unpack2x16float(w[at + pairs]);
    let d = unpack2x16float(w[at + 2u * pairs]);
    let e = unpack2x16float(w[at + 3u * pairs]);
    return dot(a, v[0]) + dot(b, v[1]) + dot(d, v[2]) + dot(e, v[3]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    let pairs = p.n_embd / 2u;
    let team = lane / 32u;
    let own = lane & 31u;
    let inside = wg.x * 32u + own < pairs;
    let c = min(wg.x * 32u + own, pairs - 1u);
    let s0 = r * N_HC * pairs + c;
    var v = array<vec2<f32>, 4>(
        streams[s0], streams[s0 + pairs], streams[s0 + 2u * pairs], streams[s0 + 3u * pairs]);
    if POST {
        let g0 = r * N_GATES;
        let y_c = y[r * pairs + c];
        var next: array<vec2<f32>, 4>;
        for (var k = 0u; k < N_HC; k++) {
            next[k] = gates[g0 + 4u + k] * y_c + gates[g0 + 8u + k] * v[0]
                + gates[g0 + 12u + k] * v[1] + gates[g0 + 16u + k] * v[2] + gates[g0 + 20u + k] * v[3];
        }
        v = next;
    }
    var some = array<f32, 3>(
        product(3u * team, c, pairs, v), product(3u * team + 1u, c, pairs, v),
        product(3u * team + 2u, c, pairs, v));
    for (var i = 0u; i < 3u; i++) { parts[(3u * team + i) * 33u + own] = select(0.0, some[i], inside); }
    // Team `t` has the products of two streams number `t` and `t + 8`.
    var of_streams = array<f32, 10>(
        dot(v[0], v[0]), dot(v[1], v[0]), dot(v[1], v[1]), dot(v[2], v[0]), dot(v[2], v[1]),
        dot(v[2], v[2]), dot(v[3], v[0]), dot(v[3], v[1]), dot(v[3], v[2]), dot(v[3], v[3]));
    parts[(24u + team) * 33u + own] = select(0.0, of_streams[team], inside);
    if team < 2u { parts[(32u + team) * 33u + own] = select(0.0, of_streams[8u + team], inside); }
    // Every lane has read the streams.
    workgroupBarrier();
    if POST && team == 0u && inside {
        for (var k = 0u; k < N_HC; k++) { streams[s0 + k * pairs] = v[k]; }
    }
    if lane < 4u * N_SUMS {
        let row = (lane / 4u) * 33u + (lane & 3u) * 8u;
        var sum = 0.0;
        for (var i = 0u; i < 8u; i++) { sum += parts[row + i]; }
        parts[row] = sum;
    }
    workgroupBarrier();
    if lane < N_SUMS {
        let row = lane * 33u;
        sums[(r * p.n_parts + wg.x) * N_SUMS + lane] =
            parts[row] + parts[row + 8u] + parts[row + 16u] + parts[row + 24u];
    }
}
