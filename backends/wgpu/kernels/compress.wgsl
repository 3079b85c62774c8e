// The whole compressor after its projections, for steps so short that no frontier row is overwritten
// that a row of the step still pools. One workgroup for a row: it stores the row's projections and,
// where the row completes a compressed row, pools, norms, rotates, rounds and stores that.
struct P { n: u32, half_dim: u32, table: u32, eps: f32, hadamard: f32, dim: u32, ratio: u32, n_pooled: u32, n_ring: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include reduce
//!include bf16
//!include rounding
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read> ape: array<f32>;
@group(0) @binding(3) var<storage, read> kv: array<f32>;
@group(0) @binding(4) var<storage, read> gate: array<f32>;
@group(0) @binding(5) var<storage, read_write> frontier: array<f32>;
@group(0) @binding(6) var<storage, read_write> cache: array<u32>;
//!include cache_row
//!include store_element

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    let position = row_position(r);
    let ring = row_slot(r) * p.n_ring;
    let own = (ring + position % p.n_ring) * 2u * p.dim;
    for (var c = lane; c < p.dim; c += WG) {
        frontier[own + c] = kv[r * p.dim + c];
        frontier[own + p.dim + c] = gate[r * p.dim + c] + ape[(position % p.ratio) * p.dim + c];
    }
    let end = position + 1u;
    if end % p.ratio != 0u { return; }
    let first_row = row_first(r);
    let segment = position - (r - first_row);
    for (var c = lane; c < ROW_DIM; c += WG) {
        var top = -3.4e38;
        var weight = 0.0;
        var sum = 0.0;
        for (var t = end - min(end, p.n_pooled); t < end; t++) {
            let channel = c + select(0u, ROW_DIM, p.dim > ROW_DIM && t + p.ratio >= end);
            var a: f32;
            var g: f32;
            if t >= segment {
                let at = (first_row + (t - segment)) * p.dim + channel;
                a = kv[at];
                g = gate[at] + ape[(t % p.ratio) * p.dim + channel];
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
        v[c] = sum / weight;
    }
    workgroupBarrier();
    norm_rope_round(lane, r);
    let row = row_base(r) / p.ratio + end / p.ratio - 1u;
    for (var c = 2u * lane; c < ROW_DIM; c += 2u * WG) { store_pair(row * ROW_DIM + c, v[c], v[c + 1u]); }
}
