// The `k` largest of a row's `width` logits, descending, of equal ones the lowest id first, and the
// log-sum-exp of all at temperature 1 and at the row's: one workgroup of at least 256 lanes for a row. The
// k-th largest key is found eight bits at a time; the chosen ones are sorted by a bitonic network.
struct P { n: u32, width: u32, k: u32 }
var<immediate> p: P;
//!include rows
//!include reduce
//!include order
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<u32>;

//!include scan
var<workgroup> above: array<u32, WG>;
var<workgroup> taken: atomic<u32>;
var<workgroup> keys: array<u32, 256>;
var<workgroup> names: array<u32, 256>;

fn max_all(lane: u32, x: u32) -> u32 {
    above[lane] = x;
    workgroupBarrier();
    for (var half_len = WG / 2u; half_len > 0u; half_len /= 2u) {
        if lane < half_len { above[lane] = max(above[lane], above[lane + half_len]); }
        workgroupBarrier();
    }
    let top = above[0];
    workgroupBarrier();
    return top;
}

// Logits `c`, `c + WG` and so on of a row, the last one where there are no more.
fn four(l0: u32, c: u32) -> vec4<f32> {
    let last = l0 + p.width - 1u;
    let at = l0 + c;
    return vec4<f32>(
        logits[at], logits[min(at + WG, last)], logits[min(at + 2u * WG, last)],
        logits[min(at + 3u * WG, last)]);
}

// Of keys like the last one not all are taken: contiguous parts, so that those of the lowest ids are.
fn take_lowest(lane: u32, l0: u32, prefix: u32, left: u32) {
    let part = (p.width + WG - 1u) / WG;
    let begin = min(lane * part, p.width);
    let end = min(begin + part, p.width);
    var n_above = 0u;
    var n_equal = 0u;
    for (var c = begin; c < end; c++) {
        let key = order(logits[l0 + c]);
        n_above += select(0u, 1u, key > prefix);
        n_equal += select(0u, 1u, key == prefix);
    }
    let n_before = sum_before(lane, vec2<u32>(n_above, n_equal));
    var a = n_before.x;
    var e = n_before.y;
    for (var c = begin; c < end; c++) {
        let key = order(logits[l0 + c]);
        if (key > prefix || (key == prefix && e < left)) && a + min(e, left) < p.k {
            keys[a + min(e, left)] = key;
            names[a + min(e, left)] = c;
        }
        a += select(0u, 1u, key > prefix);
        e += select(0u, 1u, key == prefix);
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    let l0 = r * p.width;
    let k0 = r * p.k;

    var top_key = 0u;
    var infinite = 0u;
    for (var c = lane; c < p.width; c += 4u * WG) {
        let x = four(l0, c);
        for (var i = 0u; i < 4u; i++) {
            if c + i * WG < p.width {
                let bits = bitcast<u32>(x[i]);
                infinite |= select(0u, 1u, (bits & 0x7f800000u) == 0x7f800000u);
                top_key = max(top_key, order(x[i]));
            }
        }
    }
    infinite = max_all(lane, infinite);
    top_key = max_all(lane, top_key);
    let top = bitcast<f32>(top_key ^ select(0xffffffffu, 0x80000000u, (top_key >> 31u) != 0u));
    let inv_temperature = row_inv_temperature(r);
    var plain = 0.0;
    var scaled = 0.0;
    for (var c = lane; c < p.width; c += 4u * WG) {
        let x = four(l0, c) - vec4<f32>(top);
        for (var i = 0u; i < 4u; i++) {
            if c + i * WG < p.width {
                plain += exp(x[i]);
                scaled += exp(x[i] * inv_temperature);
            }
        }
    }
    plain = sum_all(lane, plain);
    scaled = sum_all(lane, scaled);
    if lane == 0u {
        lse[2u * r] = select(bitcast<u32>(top + log(plain)), 0x7fc00000u, infinite != 0u);
        lse[2u * r + 1u] =
            select(bitcast<u32>(top * inv_temperature + log(scaled)), 0x7fc00000u, infinite != 0u);
    }

    // The largest key such that at least `k` are no smaller, and how many of its own kind are taken.
    var prefix = 0u;
    var left = p.k;
    for (var shift = 24i; shift >= 0; shift -= 8) {
        if lane < 256u { atomicStore(&counts[lane], 0u); }
        workgroupBarrier();
        let mask = select(0xffffffffu << u32(shift + 8), 0u, shift == 24);
        for (var c = lane; c < p.width; c += 4u * WG) {
            let x = four(l0, c);
            for (var i = 0u; i < 4u; i++) {
                let key = order(x[i]);
                if c + i * WG < p.width && (key & mask) == prefix {
                    atomicAdd(&counts[(key >> u32(shift)) & 255u], 1u);
                }
            }
        }
        workgroupBarrier();
        let digit = choose_digit(lane, left);
        prefix |= digit.x << u32(shift);
        left = digit.y;
    }

    if lane < 256u {
        keys[lane] = 0u;
        names[lane] = 0xffffffffu;
    }
    if lane == 0u { atomicStore(&taken, 0u); }
    let n_like_it = atomicLoad(&counts[prefix & 255u]);
    workgroupBarrier();
    if n_like_it == left {
        for (var c = lane; c < p.width; c += 4u * WG) {
            let x = four(l0, c);
            for (var i = 0u; i < 4u; i++) {
                let key = order(x[i]);
                if c + i * WG < p.width && key >= prefix {
                    let at = min(atomicAdd(&taken, 1u), 255u);
                    keys[at] = key;
                    names[at] = c + i * WG;
                }
            }
        }
    } else {
        take_lowest(lane, l0, prefix, left);
    }
    workgroupBarrier();

    for (var size = 2u; size <= 256u; size *= 2u) {
        for (var step = size / 2u; step > 0u; step /= 2u) {
            let other = lane ^ step;
            if lane < 256u && other > lane {
                let swap_up = (lane & size) == 0u;
                let first = keys[lane] > keys[other]
                    || (keys[lane] == keys[other] && names[lane] < names[other]);
                if first != swap_up {
                    let key = keys[lane];
                    let name = names[lane];
                    keys[lane] = keys[other];
                    names[lane] = names[other];
                    keys[other] = key;
                    names[other] = name;
                }
            }
            workgroupBarrier();
        }
    }
    if lane < p.k {
        let id = min(names[lane], p.width - 1u);
        ids[k0 + lane] = id;
        values[k0 + lane] = logits[l0 + id];
    }
}
