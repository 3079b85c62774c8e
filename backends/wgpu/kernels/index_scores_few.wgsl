// score[c] = sum_h w[h] * scale * max(0, iq[h] · ik[c]) for one row and 32 index rows of bf16: a
// workgroup keeps the rotated and rounded queries, which bf16 holds, and the keys in its memory;
// eight lanes share a key's heads. INDEX_DIM is at most 128, N_HEADS a multiple of 8 up to 64.
struct P { n: u32, begin: u32, scale: f32, width: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
const WORDS: u32 = INDEX_DIM / 2u;
const STRIDE: u32 = WORDS + 1u;
//!include rows
@group(0) @binding(1) var<storage, read> iq: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> cache: array<u32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

var<workgroup> queries: array<u32, N_HEADS * WORDS>;
var<workgroup> keys: array<u32, 32u * STRIDE>;
var<workgroup> parts: array<f32, WG>;

fn channels(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = p.begin + wg.y;
    if is_pad(r) { return; }
    let n_visible = (row_position(r) + 1u) / 4u;
    let c0 = wg.x * 32u;
    if c0 >= n_visible { return; }
    for (var i = lane; i < N_HEADS * WORDS; i += WG) {
        let v = iq[r * N_HEADS * WORDS + i];
        queries[i] = (bitcast<u32>(v.x) >> 16u) | (bitcast<u32>(v.y) & 0xffff0000u);
    }
    let first = (row_base(r) / 4u + c0) * WORDS;
    for (var i = lane; i < 32u * WORDS; i += WG) {
        if c0 + i / WORDS < n_visible { keys[(i / WORDS) * STRIDE + i % WORDS] = cache[first + i]; }
    }
    workgroupBarrier();
    let key = (lane & 31u) * STRIDE;
    let share = lane / 32u;
    var score = 0.0;
    for (var h0 = share; h0 < N_HEADS; h0 += 32u) {
        // Four heads at a time.
        var dots = vec4<f32>(0.0);
        let q0 = h0 * WORDS;
        for (var w = 0u; w < WORDS; w++) {
            let k = channels(keys[key + w]);
            dots.x += dot(channels(queries[q0 + w]), k);
            if h0 + 8u < N_HEADS { dots.y += dot(channels(queries[q0 + 8u * WORDS + w]), k); }
            if h0 + 16u < N_HEADS { dots.z += dot(channels(queries[q0 + 16u * WORDS + w]), k); }
            if h0 + 24u < N_HEADS { dots.w += dot(channels(queries[q0 + 24u * WORDS + w]), k); }
        }
        for (var i = 0u; i < 4u; i++) {
            let h = h0 + 8u * i;
            if h < N_HEADS { score += weights[r * N_HEADS + h] * p.scale * max(dots[i], 0.0); }
        }
    }
    parts[lane] = score;
    workgroupBarrier();
    if lane < 32u && c0 + lane < n_visible {
        var sum = 0.0;
        for (var s = 0u; s < 8u; s++) { sum += parts[32u * s + lane]; }
        scores[wg.y * p.width + c0 + lane] = sum;
    }
}
