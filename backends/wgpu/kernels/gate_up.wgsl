// hidden = silu(min(g, clamp)) * clamp(u, ±clamp), with g and u the products of x: a lane for a
// hidden value. ROUTED: of the row's `k` experts, those in `lo .. hi`, times their weights.
struct P { n: u32, n_in: u32, n_out: u32, k: u32, lo: u32, hi: u32, clamp: f32, gate_qs: u32, gate_ss: u32, up_qs: u32, up_ss: u32 }
var<immediate> p: P;
//!include rows
//!include swiglu
//!decode gate 1
//!decode up 3
@group(0) @binding(5) var<storage, read> x: array<f32>;
@group(0) @binding(6) var<storage, read_write> hidden: array<f32>;
@group(0) @binding(7) var<storage, read> experts: array<u32>;
@group(0) @binding(8) var<storage, read> weights: array<f32>;

fn product(w: W8, at: u32, n: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < min(n, 8u); i++) { sum += select(w.b[i & 3u], w.a[i & 3u], i < 4u) * x[at + i]; }
    return sum;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y / p.k;
    if id.x >= p.n_out || is_pad(r) { return; }
    var row = id.x;
    var weight = 1.0;
    if ROUTED {
        let expert = experts[id.y];
        if expert < p.lo || expert >= p.hi { return; }
        row += (expert - p.lo) * p.n_out;
        weight = weights[id.y];
    }
    var g = 0.0;
    var u = 0.0;
    for (var k = 0u; k < p.n_in; k += 8u) {
        g += product(gate_decode8(row, k), r * p.n_in + k, p.n_in - k);
        u += product(up_decode8(row, k), r * p.n_in + k, p.n_in - k);
    }
    hidden[id.y * p.n_out + id.x] = swiglu(g, u, p.clamp, weight);
}
