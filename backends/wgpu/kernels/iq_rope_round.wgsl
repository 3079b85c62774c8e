// Indexer queries: rotation, then Hadamard transform and rounding, in place. One workgroup for a
// head of a row.
struct P { n: u32, n_heads: u32, half_dim: u32, table: u32, scale: f32 }
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
    let plain = INDEX_DIM - 2u * p.half_dim;
    for (var c = lane; c < plain; c += WG) { v[c] = x[x0 + c]; }
    for (var i = lane; i < p.half_dim; i += WG) {
        let at = plain + 2u * i;
        let angle = row_angle(r, p.table, p.half_dim, i);
        let a = x[x0 + at];
        let b = x[x0 + at + 1u];
        v[at] = a * angle.x - b * angle.y;
        v[at + 1u] = a * angle.y + b * angle.x;
    }
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
    for (var c = lane; c < INDEX_DIM; c += WG) {
        let first = c & ~31u;
        var amax = 0.0;
        for (var i = first; i < min(first + 32u, INDEX_DIM); i++) { amax = max(amax, abs(v[i] * p.scale)); }
        let e = index_exponent(amax);
        x[x0 + c] = round_e2m1(v[c] * p.scale * exp2i(-e)) * exp2i(e);
    }
}
