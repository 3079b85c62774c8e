// Adds the splits of `attend_tile`: one workgroup for a head of a row. INVERSE: the result is rotated
// back. QUANTISED: 8-bit codes as well.
struct P { n: u32, n_heads: u32, n_splits: u32, half_dim: u32, table: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include quantise_block
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;
@group(0) @binding(5) var<storage, read_write> scales: array<f32>;

var<workgroup> v: array<f32, HEAD_DIM>;
var<workgroup> factors: array<f32, 64>;
var<workgroup> tops: array<f32, 64>;
var<workgroup> weights: array<f32, 64>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    let first = r * p.n_splits * p.n_heads + wg.x;
    if lane < p.n_splits {
        let at = 2u * (first + lane * p.n_heads);
        tops[lane] = stats[at];
        weights[lane] = stats[at + 1u];
    }
    workgroupBarrier();
    var top = -3.4e38;
    for (var s = 0u; s < p.n_splits; s++) { top = max(top, tops[s]); }
    var total = 0.0;
    for (var s = 0u; s < p.n_splits; s++) { total += exp(tops[s] - top) * weights[s]; }
    if lane < p.n_splits { factors[lane] = exp(tops[lane] - top) / total; }
    workgroupBarrier();
    let step = p.n_heads * HEAD_DIM;
    for (var c = lane; c < HEAD_DIM; c += WG) {
        var sum = 0.0;
        var at = first * HEAD_DIM + c;
        var s = 0u;
        for (; s + 8u <= p.n_splits; s += 8u) {
            let a = vec4<f32>(sums[at], sums[at + step], sums[at + 2u * step], sums[at + 3u * step]);
            at += 4u * step;
            let b = vec4<f32>(sums[at], sums[at + step], sums[at + 2u * step], sums[at + 3u * step]);
            at += 4u * step;
            sum += dot(a, vec4<f32>(factors[s], factors[s + 1u], factors[s + 2u], factors[s + 3u]))
                + dot(b, vec4<f32>(factors[s + 4u], factors[s + 5u], factors[s + 6u], factors[s + 7u]));
        }
        for (; s < p.n_splits; s++) {
            sum += factors[s] * sums[at];
            at += step;
        }
        v[c] = sum;
    }
    workgroupBarrier();
    if INVERSE {
        for (var i = lane; i < p.half_dim; i += WG) {
            let at = HEAD_DIM - 2u * (p.half_dim - i);
            let angle = row_angle(r, p.table, p.half_dim, i);
            let a = v[at];
            let b = v[at + 1u];
            v[at] = a * angle.x + b * angle.y;
            v[at + 1u] = b * angle.x - a * angle.y;
        }
        workgroupBarrier();
    }
    let o0 = (r * p.n_heads + wg.x) * HEAD_DIM;
    for (var c0 = 0u; c0 < HEAD_DIM; c0 += WG) {
        let c = c0 + lane;
        var value = 0.0;
        if c < HEAD_DIM {
            value = v[c];
            out[o0 + c] = value;
        }
        if QUANTISED {
            let scale = quantise_block(lane, value);
            if c < HEAD_DIM {
                if (lane & 31u) == 0u { scales[(o0 + c) / 32u] = scale; }
                if (lane & 3u) == 0u { codes[(o0 + c) / 4u] = packed_codes(lane); }
            }
            workgroupBarrier();
        }
    }
}
