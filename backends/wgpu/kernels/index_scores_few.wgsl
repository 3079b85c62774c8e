// score[c] = sum_h w[h] * scale * max(0, iq[h] · ik[c]) for one row and 8 index rows of bf16: a
// workgroup keeps the rotated and rounded queries, which bf16 holds, and the keys in its memory; 32
// lanes share a key's heads. INDEX_DIM is a multiple of 8 up to 128, N_HEADS is at most 64.
struct P { n: u32, begin: u32, scale: f32, width: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
// Vectors of a row, eight channels each; rows begin four banks apart.
const PIECES: u32 = INDEX_DIM / 8u;
const STRIDE: u32 = PIECES + 1u;
//!include rows
@group(0) @binding(1) var<storage, read> iq: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

var<workgroup> queries: array<vec4<u32>, N_HEADS * STRIDE>;
var<workgroup> keys: array<vec4<u32>, 8u * STRIDE>;
var<workgroup> parts: array<f32, WG>;

fn packed(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    return (vec4<u32>(a.x, a.z, b.x, b.z) >> vec4<u32>(16u))
        | (vec4<u32>(a.y, a.w, b.y, b.w) & vec4<u32>(0xffff0000u));
}

fn product(a: vec4<u32>, b: vec4<u32>) -> f32 {
    let high = vec4<u32>(0xffff0000u);
    let shift = vec4<u32>(16u);
    return dot(bitcast<vec4<f32>>(a << shift), bitcast<vec4<f32>>(b << shift))
        + dot(bitcast<vec4<f32>>(a & high), bitcast<vec4<f32>>(b & high));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = p.begin + wg.y;
    if is_pad(r) { return; }
    let n_visible = (row_position(r) + 1u) / 4u;
    let c0 = wg.x * 8u;
    if c0 >= n_visible { return; }
    for (var i = lane; i < N_HEADS * PIECES; i += WG) {
        let at = 2u * (r * N_HEADS * PIECES + i);
        queries[(i / PIECES) * STRIDE + i % PIECES] = packed(iq[at], iq[at + 1u]);
    }
    let first = row_base(r) / 4u + c0;
    if lane < 8u * PIECES {
        let row = min(lane / PIECES, n_visible - 1u - c0);
        keys[(lane / PIECES) * STRIDE + lane % PIECES] = cache[(first + row) * PIECES + lane % PIECES];
    }
    workgroupBarrier();
    let key = (lane & 7u) * STRIDE;
    var score = 0.0;
    for (var h = lane / 8u; h < N_HEADS; h += 32u) {
        var sum = 0.0;
        for (var i = 0u; i < PIECES; i++) { sum += product(queries[h * STRIDE + i], keys[key + i]); }
        score += weights[r * N_HEADS + h] * p.scale * max(sum, 0.0);
    }
    parts[lane] = score;
    workgroupBarrier();
    if lane < 8u && c0 + lane < n_visible {
        var sum = 0.0;
        for (var s = 0u; s < 32u; s++) { sum += parts[8u * s + lane]; }
        scores[wg.y * p.width + c0 + lane] = sum;
    }
}
