// Attention with sinks over bf16 rows on cooperative matrices of 16 by 16: one workgroup of four
// subgroups of 32 lanes for 16 heads of a row, 16 keys at a time. A subgroup takes a quarter of the
// channels: of the scores' sums, which are added up afterwards, and of the values.
// Weights are exp(score - top). `top` rises only when a score is beyond it by 8, because the sums are
// then rescaled through workgroup memory; until then weights are at most exp(8), which f16 holds.
// SPLIT and RAW are those of `attend_tile`.
struct P { n: u32, n_heads: u32, scale: f32, n_ring: u32, ratio: u32, top_k: u32, n_splits: u32, half_dim: u32, table: u32, eps: f32 }
var<immediate> p: P;
const WG: u32 = 128u;
const HEADS: u32 = 16u;
const TILE: u32 = 16u;
// Vectors of a row: of eight bf16, of four floats, and of four f16 in workgroup memory.
const PIECES: u32 = HEAD_DIM / 8u;
const QUARTERS: u32 = HEAD_DIM / 4u;
const STRIDE: u32 = QUARTERS + 2u;
// Vectors of a subgroup's channels.
const OWN: u32 = QUARTERS / 4u;
const SLACK: f32 = 8.0;
//!include rows
//!include row_keys
//!include sync
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> kv: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> ring: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> selected: array<u32>;
@group(0) @binding(6) var<storage, read> sinks: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
@group(0) @binding(8) var<storage, read_write> stats: array<f32>;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

// The queries first, then 16 keys at a time.
var<workgroup> keys: array<vec4<f16>, TILE * STRIDE>;
var<workgroup> parts: array<f32, 4u * 256u>;
var<workgroup> scores: array<f32, 256>;
var<workgroup> probs: array<f16, 256>;
var<workgroup> tops: array<f32, HEADS>;
var<workgroup> keeps: array<f32, HEADS>;

fn low_halves(w: vec4<u32>) -> vec4<f32> { return bitcast<vec4<f32>>(w << vec4<u32>(16u)); }
fn high_halves(w: vec4<u32>) -> vec4<f32> { return bitcast<vec4<f32>>(w & vec4<u32>(0xffff0000u)); }

// Four channels of a normed query, those at the end rotated: whole vectors, two pairs each.
fn rotated(r: u32, c: u32, v: vec4<f32>) -> vec4<f32> {
    let plain = QUARTERS - p.half_dim / 2u;
    if c < plain { return v; }
    let i = 2u * (c - plain);
    let a = row_angle(r, p.table, p.half_dim, i);
    let b = row_angle(r, p.table, p.half_dim, i + 1u);
    return vec4<f32>(
        v.x * a.x - v.y * a.y, v.x * a.y + v.y * a.x, v.z * b.x - v.w * b.y, v.z * b.y + v.w * b.x);
}

// A subgroup's sums after the tops of their heads rose. `nothing[1]` says whether some did.
fn rescale(sum: ptr<function, Sum>, lane: u32, z: u32) {
    let own = z + (lane / 32u) * 256u;
    coopStore(*sum, &parts[own], 16u);
    let za = sync();
    for (var i = lane & 31u; i < 256u; i += 32u) { parts[za + own + i] *= keeps[za + (i & 15u)]; }
    let zb = sync();
    let at = zb + own;
    *sum = coopLoad<Sum>(&parts[at], 16u);
    workgroupBarrier();
}

fn attend(wg: vec3<u32>, lane: u32) {
    let r = wg.y;
    let own_keys = keys_of(r);
    let start = own_keys.start;
    let n_old = own_keys.n_old;
    let n_window = own_keys.n_window;
    let first_new = own_keys.first_new;
    let n_keys = own_keys.n_keys;
    let cache_row = own_keys.cache_row;
    var split = 0u;
    if SPLIT { split = wg.z; }

    begin_sync(lane);
    // Eight lanes for a head of the queries.
    let h0 = wg.x * HEADS;
    let own_head = lane / 8u;
    let own_query = (r * p.n_heads + h0 + own_head) * QUARTERS;
//!repeat Q_EACH 1
    var q@I@ = q[own_query + (lane & 7u) + @I@u * 8u];
//!end
    if RAW {
        var sum = 0.0;
//!repeat Q_EACH 1
        sum += dot(q@I@, q@I@);
//!end
        parts[lane] = sum;
        let z = sync();
        var total = 0.0;
        for (var i = 0u; i < 8u; i++) { total += parts[z + (lane & ~7u) + i]; }
        let inv = 1.0 / sqrt(total / f32(HEAD_DIM) + p.eps);
//!repeat Q_EACH 1
        q@I@ = rotated(r, (lane & 7u) + @I@u * 8u, q@I@ * inv);
//!end
    }
//!repeat Q_EACH 1
    keys[own_head * STRIDE + (lane & 7u) + @I@u * 8u] = vec4<f16>(q@I@);
//!end
    if lane < HEADS { tops[lane] = select(-3.0e38, sinks[h0 + lane], split == 0u); }
    let z0 = sync();
    let sub = lane / 32u;
//!repeat K_STEPS 1
    let query@I@ = coopLoadT<Left>(&keys[z0 + sub * OWN + @I@u * 4u], STRIDE);
    var sum@I@ = Sum();
//!end
    // A lane has the scores of a head with two keys, and a part of the head's weight.
    let head = lane & 15u;
    let key = lane / 16u;
    var weight = select(0.0, 1.0, split == 0u && key == 0u);

//!repeat K_STEPS 1
    var words@I@ = vec4<u32>(0u);
//!end
    for (var k0 = split * TILE; k0 < n_keys; k0 += p.n_splits * TILE) {
        // Eight lanes for a key, which is of the ring, of the cache or, below, of the batch.
        let k = k0 + lane / 8u;
        let c0 = lane & 7u;
        let place = (lane / 8u) * STRIDE + 2u * c0;
        let in_batch = k >= n_old && k < n_window;
        if k >= n_window && k < n_keys {
            var row = k - n_window;
            if COMPRESSED == 2u { row = selected[r * p.top_k + row]; }
            let at = (cache_row + row) * PIECES + c0;
//!repeat K_STEPS 1
            words@I@ = cache[at + @I@u * 8u];
//!end
        } else if k < n_old {
            let at = (row_slot(r) * p.n_ring + (start + k) % p.n_ring) * PIECES + c0;
//!repeat K_STEPS 1
            words@I@ = ring[at + @I@u * 8u];
//!end
        } else {
//!repeat K_STEPS 1
            words@I@ = vec4<u32>(0u);
//!end
        }
        let za = sync();
        if in_batch {
            let at = (first_new + k - n_old) * QUARTERS + 2u * c0;
//!repeat K_STEPS 1
            keys[za + place + @I@u * 16u] = vec4<f16>(kv[at + @I@u * 16u]);
            keys[za + place + @I@u * 16u + 1u] = vec4<f16>(kv[at + @I@u * 16u + 1u]);
//!end
        } else {
//!repeat K_STEPS 1
            let low@I@ = low_halves(words@I@);
            let high@I@ = high_halves(words@I@);
            keys[za + place + @I@u * 16u] = vec4<f16>(vec4<f32>(low@I@.x, high@I@.x, low@I@.y, high@I@.y));
            keys[za + place + @I@u * 16u + 1u] = vec4<f16>(vec4<f32>(low@I@.z, high@I@.z, low@I@.w, high@I@.w));
//!end
        }
        let zb = sync();
        {
            var score = Sum();
//!repeat K_STEPS 1
            let key@I@ = coopLoad<Right>(&keys[zb + sub * OWN + @I@u * 4u], STRIDE);
            score = coopMultiplyAdd(query@I@, key@I@, score);
//!end
            coopStore(score, &parts[zb + sub * 256u], 16u);
        }
        let zc = sync();
        let at = zc + key * 16u + head;
        var a = (parts[at] + parts[at + 256u] + parts[at + 512u] + parts[at + 768u]) * p.scale;
        var b = (parts[at + 128u] + parts[at + 384u] + parts[at + 640u] + parts[at + 896u]) * p.scale;
        if k0 + key >= n_keys { a = -3.4e38; }
        if k0 + key + 8u >= n_keys { b = -3.4e38; }
        scores[at] = a;
        scores[at + 128u] = b;
        if max(a, b) > tops[zc + head] + SLACK { atomicStore(&nothing[1], 1u); }
        var zd = sync();
        if atomicLoad(&nothing[1]) != 0u {
            if lane < HEADS {
                let before = tops[zd + lane];
                var top = before;
                for (var i = 0u; i < TILE; i++) { top = max(top, scores[zd + i * 16u + lane]); }
                keeps[zd + lane] = exp(before - top);
                tops[zd + lane] = top;
            }
            zd = sync();
            if lane == 0u { atomicStore(&nothing[1], 0u); }
            weight *= keeps[zd + head];
//!repeat K_STEPS 1
            rescale(&sum@I@, lane, zd);
//!end
            zd = sync();
        }
        let wa = exp(a - tops[zd + head]);
        let wb = exp(b - tops[zd + head]);
        weight += wa + wb;
        probs[zd + head * 16u + key] = f16(wa);
        probs[zd + head * 16u + key + 8u] = f16(wb);
        let ze = sync();
        {
            let weights = coopLoadT<Left>(&probs[ze], 16u);
//!repeat K_STEPS 1
            let value@I@ = coopLoadT<Right>(&keys[ze + sub * OWN + @I@u * 4u], STRIDE);
            sum@I@ = coopMultiplyAdd(weights, value@I@, sum@I@);
//!end
        }
    }
    let zf = sync();
    scores[zf + lane] = weight;
    let zg = sync();
    if lane < HEADS {
        var total = 0.0;
        for (var i = 0u; i < 8u; i++) { total += scores[zg + i * 16u + lane]; }
        keeps[zg + lane] = select(1.0 / total, 1.0, SPLIT);
        if SPLIT {
            let row = (r * p.n_splits + split) * p.n_heads + h0 + lane;
            stats[2u * row] = tops[zg + lane];
            stats[2u * row + 1u] = total;
        }
    }
    let row = (r * p.n_splits + split) * p.n_heads + h0;
    // A subgroup's channels of 16 heads, 16 at a time.
//!repeat K_STEPS 1
    let before@I@ = sync();
    coopStore(sum@I@, &parts[before@I@ + sub * 256u], 16u);
    let after@I@ = sync();
    for (var i = lane & 31u; i < 256u; i += 32u) {
        let h = i / 16u;
        let c = (sub * OWN + @I@u * 4u) * 4u + (i & 15u);
        out[(row + h) * HEAD_DIM + c] =
            parts[after@I@ + sub * 256u + (i & 15u) * 16u + h] * keeps[after@I@ + h];
    }
//!end
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if is_pad(wg.y) { return; }
    attend(wg, lane);
}
