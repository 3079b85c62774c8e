// Rotates the last `2 * half_dim` channels of every head: neighbours by the row's angle, whose sine
// is multiplied by `sign`.
struct P { n: u32, head_dim: u32, n_heads: u32, half_dim: u32, table: u32, sign: f32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    if id.x >= p.n_heads * p.half_dim || is_pad(r) { return; }
    let i = id.x % p.half_dim;
    let at = (r * p.n_heads + id.x / p.half_dim + 1u) * p.head_dim - 2u * (p.half_dim - i);
    let angle = row_angle(r, p.table, p.half_dim, i);
    let sin = angle.y * p.sign;
    let a = x[at];
    let b = x[at + 1u];
    x[at] = a * angle.x - b * sin;
    x[at + 1u] = a * sin + b * angle.x;
}
