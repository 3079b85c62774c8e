// Attention with sinks over bf16 rows: one workgroup for four heads of a row, 16 keys at a time with
// a running maximum. SPLIT: the workgroup takes every `n_splits`-th tile and leaves its sums, its
// maximum and its weight for `attend_combine`. RAW: queries are normed and rotated here.
struct P { n: u32, n_heads: u32, scale: f32, n_ring: u32, ratio: u32, top_k: u32, n_splits: u32, half_dim: u32, table: u32, eps: f32 }
var<immediate> p: P;
const WG: u32 = 256u;
const HEADS: u32 = 4u;
const TILE: u32 = 16u;
const WORDS: u32 = HEAD_DIM / 2u;
// Vectors of a key: eight channels each. Rows begin four banks apart.
const PIECES: u32 = HEAD_DIM / 8u;
const STRIDE: u32 = PIECES + 1u;
// Vectors of a query: four channels each.
const QUARTERS: u32 = HEAD_DIM / 4u;
const PER_LANE: u32 = (WORDS + WG - 1u) / WG;
//!include rows
//!include row_keys
//!include bf16
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> kv: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> ring: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> selected: array<u32>;
@group(0) @binding(6) var<storage, read> sinks: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
@group(0) @binding(8) var<storage, read_write> stats: array<f32>;

var<workgroup> query: array<vec4<f32>, HEADS * QUARTERS>;
var<workgroup> keys: array<vec4<u32>, TILE * STRIDE>;
var<workgroup> parts: array<f32, WG>;
var<workgroup> scores: array<f32, TILE * HEADS>;
var<workgroup> tops: array<f32, HEADS>;
var<workgroup> keeps: array<f32, HEADS>;

fn pair(a: f32, b: f32) -> u32 { return bf16_bits(a) | (bf16_bits(b) << 16u); }
fn channels(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}

@compute @workgroup_size(256)
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

    let h0 = wg.x * HEADS;
    for (var i = lane; i < HEADS * QUARTERS; i += WG) {
        let h = min(h0 + i / QUARTERS, p.n_heads - 1u);
        query[i] = q[(r * p.n_heads + h) * QUARTERS + i % QUARTERS];
    }
    workgroupBarrier();
    if RAW {
        // 64 lanes for a head.
        let own = lane / 64u * QUARTERS;
        let own_lane = lane & 63u;
        var sum = 0.0;
        for (var c = own_lane; c < QUARTERS; c += 64u) { sum += dot(query[own + c], query[own + c]); }
        parts[lane] = sum;
        workgroupBarrier();
        for (var half_len = 32u; half_len > 0u; half_len /= 2u) {
            if own_lane < half_len { parts[lane] += parts[lane + half_len]; }
            workgroupBarrier();
        }
        let inv = 1.0 / sqrt(parts[lane & ~63u] / f32(HEAD_DIM) + p.eps);
        // The rotated channels are whole vectors: two pairs each.
        let plain = QUARTERS - p.half_dim / 2u;
        for (var c = own_lane; c < QUARTERS; c += 64u) {
            var v = query[own + c] * inv;
            if c >= plain {
                let i = 2u * (c - plain);
                let a = row_angle(r, p.table, p.half_dim, i);
                let b = row_angle(r, p.table, p.half_dim, i + 1u);
                v = vec4<f32>(
                    v.x * a.x - v.y * a.y, v.x * a.y + v.y * a.x,
                    v.z * b.x - v.w * b.y, v.z * b.y + v.w * b.x);
            }
            query[own + c] = v;
        }
    }
    var split = 0u;
    if SPLIT { split = wg.z; }
    if lane < HEADS {
        tops[lane] = select(-3.0e38, sinks[min(h0 + lane, p.n_heads - 1u)], split == 0u);
    }
    var sums: array<vec4<f32>, 2u * PER_LANE>;
    for (var i = 0u; i < 2u * PER_LANE; i++) { sums[i] = vec4<f32>(0.0); }
    var weight = vec4<f32>(select(0.0, 1.0, split == 0u));

    for (var k0 = split * TILE; k0 < n_keys; k0 += p.n_splits * TILE) {
        workgroupBarrier();
        for (var i = lane; i < TILE * PIECES; i += WG) {
            let k = k0 + i / PIECES;
            let c = i % PIECES;
            var words = vec4<u32>(0u);
            if k < n_old {
                let row = row_slot(r) * p.n_ring + (start + k) % p.n_ring;
                words = ring[row * PIECES + c];
            } else if k < n_window {
                let at = (first_new + k - n_old) * QUARTERS + 2u * c;
                let a = kv[at];
                let b = kv[at + 1u];
                words = vec4<u32>(pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w));
            } else if k < n_keys {
                var row = k - n_window;
                if COMPRESSED == 2u { row = selected[r * p.top_k + row]; }
                words = cache[(cache_row + row) * PIECES + c];
            }
            keys[(i / PIECES) * STRIDE + c] = words;
        }
        workgroupBarrier();
        // Four lanes for a product of a key and a head, on interleaved vectors.
        {
            let product = lane / 4u;
            let key = (product % TILE) * STRIDE;
            let head = (product / TILE) * QUARTERS;
            var sum = 0.0;
            for (var i = lane & 3u; i < PIECES; i += 4u) {
                let k = keys[key + i];
                let low = bitcast<vec4<f32>>(k << vec4<u32>(16u));
                let high = bitcast<vec4<f32>>(k & vec4<u32>(0xffff0000u));
                sum += dot(query[head + 2u * i], vec4<f32>(low.x, high.x, low.y, high.y))
                    + dot(query[head + 2u * i + 1u], vec4<f32>(low.z, high.z, low.w, high.w));
            }
            parts[lane] = sum;
        }
        workgroupBarrier();
        if lane < TILE * HEADS {
            let at = 4u * lane;
            let score = (parts[at] + parts[at + 1u] + parts[at + 2u] + parts[at + 3u]) * p.scale;
            scores[lane] = select(-3.4e38, score, k0 + lane % TILE < n_keys);
        }
        workgroupBarrier();
        var own = 0.0;
        var next = 0.0;
        if lane < TILE * HEADS {
            let head = lane / TILE;
            next = tops[head];
            for (var i = 0u; i < TILE; i++) { next = max(next, scores[head * TILE + i]); }
            own = exp(scores[lane] - next);
        }
        workgroupBarrier();
        if lane < TILE * HEADS {
            scores[lane] = own;
            if lane % TILE == 0u {
                keeps[lane / TILE] = exp(tops[lane / TILE] - next);
                tops[lane / TILE] = next;
            }
        }
        workgroupBarrier();
        let keep = vec4<f32>(keeps[0], keeps[1], keeps[2], keeps[3]);
        weight *= keep;
        for (var i = 0u; i < 2u * PER_LANE; i++) { sums[i] *= keep; }
        for (var k = 0u; k < TILE; k++) {
            let w = vec4<f32>(scores[k], scores[TILE + k], scores[2u * TILE + k], scores[3u * TILE + k]);
            weight += w;
            for (var j = 0u; j < PER_LANE; j++) {
                let at = lane + j * WG;
                if at < WORDS {
                    let c = channels(keys[k * STRIDE + at / 4u][at & 3u]);
                    sums[2u * j] += w * c.x;
                    sums[2u * j + 1u] += w * c.y;
                }
            }
        }
    }
    workgroupBarrier();
    for (var h = 0u; h < HEADS; h++) {
        if h0 + h >= p.n_heads { break; }
        let head = (r * p.n_splits + split) * p.n_heads + h0 + h;
        let factor = select(1.0 / weight[h], 1.0, SPLIT);
        for (var j = 0u; j < PER_LANE; j++) {
            let at = lane + j * WG;
            if at < WORDS {
                out[head * HEAD_DIM + 2u * at] = sums[2u * j][h] * factor;
                out[head * HEAD_DIM + 2u * at + 1u] = sums[2u * j + 1u][h] * factor;
            }
        }
        if SPLIT && lane == 0u {
            stats[2u * head] = tops[h];
            stats[2u * head + 1u] = weight[h];
        }
    }
}
