// Queries: the norm of every head, then its rotation, in place. One workgroup for a head of a row.
struct P { n: u32, head_dim: u32, n_heads: u32, half_dim: u32, table: u32, eps: f32 }
var<immediate> p: P;
const WG: u32 = 64u;
//!include rows
//!include reduce
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    let x0 = (r * p.n_heads + wg.x) * p.head_dim;
    var sum = 0.0;
    for (var c = lane; c < p.head_dim; c += WG) { sum += x[x0 + c] * x[x0 + c]; }
    let inv = 1.0 / sqrt(sum_all(lane, sum) / f32(p.head_dim) + p.eps);
    let plain = p.head_dim - 2u * p.half_dim;
    for (var c = lane; c < plain; c += WG) { x[x0 + c] *= inv; }
    for (var i = lane; i < p.half_dim; i += WG) {
        let at = x0 + plain + 2u * i;
        let angle = row_angle(r, p.table, p.half_dim, i);
        let a = x[at] * inv;
        let b = x[at + 1u] * inv;
        x[at] = a * angle.x - b * angle.y;
        x[at + 1u] = a * angle.y + b * angle.x;
    }
}
