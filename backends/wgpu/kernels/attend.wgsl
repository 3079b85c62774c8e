// Attention with sinks over the window and the compressed rows: one workgroup for a head of a row,
// 64 keys at a time with a running maximum. Keys and values are the same rows of `HEAD_DIM` channels.
struct P { n: u32, n_heads: u32, scale: f32, n_ring: u32, ratio: u32, top_k: u32 }
var<immediate> p: P;
const WG: u32 = 64u;
//!include rows
//!include row_keys
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> kv: array<f32>;
@group(0) @binding(3) var<storage, read> ring: array<u32>;
@group(0) @binding(4) var<storage, read> cache: array<u32>;
@group(0) @binding(5) var<storage, read> selected: array<u32>;
@group(0) @binding(6) var<storage, read> sinks: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

const PER_LANE: u32 = (HEAD_DIM + WG - 1u) / WG;
var<workgroup> query: array<f32, HEAD_DIM>;
var<workgroup> keys: array<vec2<u32>, WG>;
var<workgroup> weights: array<f32, WG>;

fn unpack(word: u32, at: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (at & 1u) != 0u));
}

// A channel of a key: (which buffer, the row's first element).
fn key_at(key: vec2<u32>, c: u32) -> f32 {
    let at = key.y + c;
    if key.x == 0u { return kv[at]; }
    if BF16 {
        if key.x == 1u { return unpack(ring[at / 2u], at); }
        return unpack(cache[at / 2u], at);
    }
    if key.x == 1u { return bitcast<f32>(ring[at]); }
    return bitcast<f32>(cache[at]);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    let own_keys = keys_of(r);
    let start = own_keys.start;
    let n_old = own_keys.n_old;
    let n_window = own_keys.n_window;
    let first_new = own_keys.first_new;
    let n_keys = own_keys.n_keys;
    let cache_row = own_keys.cache_row;

    let q0 = (r * p.n_heads + wg.x) * HEAD_DIM;
    for (var c = lane; c < HEAD_DIM; c += WG) { query[c] = q[q0 + c]; }
    var sum: array<f32, PER_LANE>;
    for (var i = 0u; i < PER_LANE; i++) { sum[i] = 0.0; }
    var top = sinks[wg.x];
    var weight = 1.0;
    workgroupBarrier();

    for (var k0 = 0u; k0 < n_keys; k0 += WG) {
        let k = k0 + lane;
        var key = vec2<u32>(0u, 0u);
        if k < n_old {
            let at = row_slot(r) * p.n_ring + (start + k) % p.n_ring;
            key = vec2<u32>(1u, at * HEAD_DIM);
        } else if k < n_window {
            key = vec2<u32>(0u, (first_new + k - n_old) * HEAD_DIM);
        } else if k < n_keys {
            var c = k - n_window;
            if COMPRESSED == 2u { c = selected[r * p.top_k + c]; }
            key = vec2<u32>(2u, (cache_row + c) * HEAD_DIM);
        }
        keys[lane] = key;
        var score = -3.4e38;
        if k < n_keys {
            var dot = 0.0;
            for (var c = 0u; c < HEAD_DIM; c++) { dot += query[c] * key_at(key, c); }
            score = dot * p.scale;
        }
        weights[lane] = score;
        workgroupBarrier();
        let n_here = min(WG, n_keys - k0);
        var next = top;
        for (var i = 0u; i < n_here; i++) { next = max(next, weights[i]); }
        workgroupBarrier();
        weights[lane] = exp(score - next);
        workgroupBarrier();
        let keep = exp(top - next);
        weight *= keep;
        for (var i = 0u; i < PER_LANE; i++) { sum[i] *= keep; }
        for (var i = 0u; i < n_here; i++) {
            weight += weights[i];
            let row = keys[i];
            for (var j = 0u; j < PER_LANE; j++) {
                let c = lane + j * WG;
                if c < HEAD_DIM { sum[j] += weights[i] * key_at(row, c); }
            }
        }
        top = next;
        workgroupBarrier();
    }
    for (var j = 0u; j < PER_LANE; j++) {
        let c = lane + j * WG;
        if c < HEAD_DIM { out[q0 + c] = sum[j] / weight; }
    }
}
