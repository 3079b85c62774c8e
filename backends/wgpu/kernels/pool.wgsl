// Pools the tokens of every compressed row that a row of the batch completes: per channel a softmax
// of the gates over the tokens, applied to their projections. `dim` is the projections' width, `d`
// the pooled row's; a ratio-4 row takes the first half of the channels of the tokens before its
// window, and the second half of its own.
struct P { n: u32, d: u32, dim: u32, ratio: u32, n_pooled: u32, n_ring: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> kv: array<f32>;
@group(0) @binding(2) var<storage, read> gate: array<f32>;
@group(0) @binding(3) var<storage, read> frontier: array<f32>;
@group(0) @binding(4) var<storage, read_write> pooled: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    let c = id.x;
    if c >= p.d || is_pad(r) { return; }
    let end = row_position(r) + 1u;
    if end % p.ratio != 0u {
        pooled[r * p.d + c] = 0.0;
        return;
    }
    let first_row = row_first(r);
    let segment = row_position(r) - (r - first_row);
    let ring = row_slot(r) * p.n_ring;
    var top = -3.4e38;
    var weight = 0.0;
    var sum = 0.0;
    for (var t = end - min(end, p.n_pooled); t < end; t++) {
        let channel = c + select(0u, p.d, p.dim > p.d && t + p.ratio >= end);
        var a: f32;
        var g: f32;
        if t >= segment {
            let at = (first_row + (t - segment)) * p.dim + channel;
            a = kv[at];
            g = gate[at];
        } else {
            let at = (ring + t % p.n_ring) * 2u * p.dim + channel;
            a = frontier[at];
            g = frontier[at + p.dim];
        }
        let next = max(top, g);
        let keep = exp(top - next);
        let e = exp(g - next);
        weight = weight * keep + e;
        sum = sum * keep + e * a;
        top = next;
    }
    pooled[r * p.d + c] = sum / weight;
}
