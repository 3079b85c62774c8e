// Cache rounding of index rows and indexer queries, in place: an orthonormal Hadamard transform of
// every head, then E2M1 in blocks of 32. One workgroup for a head of a row.
struct P { n: u32, n_heads: u32, scale: f32 }
var<immediate> p: P;
const WG: u32 = 64u;
//!include rows
//!include rounding
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

var<workgroup> v: array<f32, INDEX_DIM>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    let x0 = (r * p.n_heads + wg.x) * INDEX_DIM;
    for (var c = lane; c < INDEX_DIM; c += WG) { v[c] = x[x0 + c]; }
    workgroupBarrier();
    for (var len = 1u; len < INDEX_DIM; len *= 2u) {
        for (var i = lane; i < INDEX_DIM / 2u; i += WG) {
            let at = (i / len) * 2u * len + i % len;
            let a = v[at];
            let b = v[at + len];
            v[at] = a + b;
            v[at + len] = a - b;
        }
        workgroupBarrier();
    }
    for (var block = lane; block < (INDEX_DIM + 31u) / 32u; block += WG) {
        let begin = block * 32u;
        let end = min(begin + 32u, INDEX_DIM);
        var amax = 0.0;
        for (var c = begin; c < end; c++) { amax = max(amax, abs(v[c] * p.scale)); }
        let e = index_exponent(amax);
        let inv = exp2i(-e);
        let scale = exp2i(e);
        for (var c = begin; c < end; c++) { x[x0 + c] = round_e2m1(v[c] * p.scale * inv) * scale; }
    }
}
