// out[r] = sum_i W_{experts[r, i]} hidden[r, i]: a lane for an output. The experts `lo .. hi` are
// here; later parts add to what the first wrote.
struct P { n: u32, n_in: u32, n_out: u32, k: u32, lo: u32, hi: u32, first: u32, w_qs: u32, w_ss: u32 }
var<immediate> p: P;
//!include rows
//!decode w 1
@group(0) @binding(3) var<storage, read> hidden: array<f32>;
@group(0) @binding(4) var<storage, read> experts: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    if id.x >= p.n_out || is_pad(r) { return; }
    var sum = 0.0;
    for (var i = 0u; i < p.k; i++) {
        let expert = experts[r * p.k + i];
        if expert < p.lo || expert >= p.hi { continue; }
        let row = (expert - p.lo) * p.n_out + id.x;
        let h0 = (r * p.k + i) * p.n_in;
        for (var k = 0u; k < p.n_in; k += 8u) {
            let w = w_decode8(row, k);
            for (var j = 0u; j < min(8u, p.n_in - k); j++) {
                sum += select(w.b[j & 3u], w.a[j & 3u], j < 4u) * hidden[h0 + k + j];
            }
        }
    }
    let at = r * p.n_out + id.x;
    if p.first != 0u { out[at] = sum; } else { out[at] += sum; }
}
