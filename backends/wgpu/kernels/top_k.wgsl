// Indices of the `k` largest visible scores, of equal ones the lowest, ascending: one workgroup for
// a row. The k-th largest key is found eight bits at a time; lanes then compact contiguous parts.
struct P { n: u32, begin: u32, k: u32, width: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include order
@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> selected: array<u32>;

//!include scan

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = p.begin + wg.x;
    if is_pad(r) { return; }
    let n = (row_position(r) + 1u) / 4u;
    let s0 = wg.x * p.width;
    let out = r * p.k;
    if n <= p.k {
        for (var c = lane; c < n; c += WG) { selected[out + c] = c; }
        return;
    }
    // The largest key such that at least `k` keys are no smaller, and how many of its own kind are taken.
    var prefix = 0u;
    var left = p.k;
    for (var shift = 24i; shift >= 0; shift -= 8) {
        for (var b = lane; b < 256u; b += WG) { atomicStore(&counts[b], 0u); }
        workgroupBarrier();
        let mask = select(0xffffffffu << u32(shift + 8), 0u, shift == 24);
        for (var c = lane; c < n; c += WG) {
            let key = order(scores[s0 + c]);
            if (key & mask) == prefix { atomicAdd(&counts[(key >> u32(shift)) & 255u], 1u); }
        }
        workgroupBarrier();
        let digit = choose_digit(lane, left);
        prefix |= digit.x << u32(shift);
        left = digit.y;
    }
    let part = (n + WG - 1u) / WG;
    let begin = min(lane * part, n);
    let end = min(begin + part, n);
    var n_above = 0u;
    var n_equal = 0u;
    for (var c = begin; c < end; c++) {
        let key = order(scores[s0 + c]);
        n_above += select(0u, 1u, key > prefix);
        n_equal += select(0u, 1u, key == prefix);
    }
    let n_before = sum_before(lane, vec2<u32>(n_above, n_equal));
    var a = n_before.x;
    var e = n_before.y;
    for (var c = begin; c < end; c++) {
        let key = order(scores[s0 + c]);
        if key > prefix || (key == prefix && e < left) { selected[out + a + min(e, left)] = c; }
        a += select(0u, 1u, key > prefix);
        e += select(0u, 1u, key == prefix);
    }
}
