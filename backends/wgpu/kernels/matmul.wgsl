// out = W x for the rows `lo ..` of W: a lane for a row of W and four rows of x. Row block `g` of W,
// of `group_out` rows, applies to channels `g * n_in ..` of x.
struct P { n: u32, n_in: u32, n_out: u32, lo: u32, group_out: u32, x_width: u32, out_width: u32, w_qs: u32, w_ss: u32 }
var<immediate> p: P;
//!include rows
//!decode w 1
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

fn product(w: W8, at: u32, n: u32) -> f32 {
    if n >= 8u {
        return dot(w.a, vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]))
            + dot(w.b, vec4<f32>(x[at + 4u], x[at + 5u], x[at + 6u], x[at + 7u]));
    }
    var sum = 0.0;
    for (var i = 0u; i < n; i++) { sum += select(w.b[i & 3u], w.a[i & 3u], i < 4u) * x[at + i]; }
    return sum;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.n_out { return; }
    let o = p.lo + id.x;
    let r0 = id.y * 4u;
    let n_rows = min(4u, p.n - r0);
    let x0 = (o / p.group_out) * p.n_in;
    var sum = vec4<f32>(0.0);
    for (var k = 0u; k < p.n_in; k += 8u) {
        let w = w_decode8(id.x, k);
        for (var i = 0u; i < n_rows; i++) {
            sum[i] += product(w, (r0 + i) * p.x_width + x0 + k, p.n_in - k);
        }
    }
    for (var i = 0u; i < n_rows; i++) {
        if !is_pad(r0 + i) { out[(r0 + i) * p.out_width + o] = sum[i]; }
    }
}
