// streams[r, j] = table[token[r]] for every stream j. The table's rows `lo .. hi` are here.
struct P { n: u32, n_embd: u32, n_hc: u32, lo: u32, hi: u32, w_qs: u32, w_ss: u32 }
var<immediate> p: P;
//!include rows
//!decode w 1
@group(0) @binding(3) var<storage, read_write> streams: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let k = id.x * 8u;
    let r = id.y;
    if k >= p.n_embd || is_pad(r) { return; }
    let token = row_token(r);
    if token < p.lo || token >= p.hi { return; }
    let w = w_decode8(token - p.lo, k);
    for (var j = 0u; j < p.n_hc; j++) {
        let at = (r * p.n_hc + j) * p.n_embd + k;
        for (var i = 0u; i < min(8u, p.n_embd - k); i++) {
            streams[at + i] = select(w.b[i & 3u], w.a[i & 3u], i < 4u);
        }
    }
}
