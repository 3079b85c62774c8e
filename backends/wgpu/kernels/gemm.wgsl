// Products of many rows: a workgroup takes BM rows of weights and BN rows of x, BK columns at a
// time, decoded into its memory. `gemm_float` or `gemm_matrix` multiplies.
// MODE 0: out = A x; block `g` of `group_out` rows of A applies to channels `g * n_in ..` of x.
// MODE 1: hidden = weight * silu(min(g, limit)) * clamp(u, ±limit) with A the gate and B the up
// matrices of a tile's expert; in 16 rows of weights eight are of each.
// MODE 3: the same of the shared expert, whose weight is 1, for all rows.
// MODE 2: out of a pair of row and expert = A hidden, with A the down matrix of a tile's expert.
// Tiles of pairs come from `sort_pairs`: number, then (expert, first place in `order`, pairs).
struct P { n: u32, n_in: u32, n_out: u32, lo: u32, hi: u32, group_out: u32, x_width: u32, out_width: u32, k: u32, limit: f32, a_qs: u32, a_ss: u32, b_qs: u32, b_ss: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
const BK: u32 = 32u;
//!include rows
//!include swiglu
//!decode a 1
//!decode b 3
@group(0) @binding(5) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> order: array<u32>;
@group(0) @binding(7) var<storage, read> tiles: array<u32>;
@group(0) @binding(8) var<storage, read> weights: array<f32>;
@group(0) @binding(9) var<storage, read_write> out: array<f32>;

const GATED: bool = MODE == 1u || MODE == 3u;
const DENSE: bool = MODE == 0u || MODE == 3u;

struct Tile { o0: u32, w0: u32, x0: u32, begin: u32, count: u32 }

// The row of x, or the pair, of a column of the tile.
fn name_of(t: Tile, j: u32) -> u32 {
    if DENSE { return t.begin + j; }
    return order[t.begin + j];
}

fn load_weights(t: Tile, m: u32, k: u32) -> W8 {
    if GATED {
        let o = min(t.o0 + (m / 16u) * 8u + (m & 7u), p.n_out - 1u);
        if (m & 8u) == 0u { return a_decode8(t.w0 + o, k); }
        return b_decode8(t.w0 + o, k);
    }
    return a_decode8(t.w0 + min(t.o0 + m, p.n_out - 1u), k);
}

fn load_x(t: Tile, j: u32, k: u32) -> W8 {
    if j >= t.count { return W8(vec4<f32>(0.0), vec4<f32>(0.0)); }
    var row = name_of(t, j);
    if MODE == 1u { row /= p.k; }
    let at = (row * p.x_width + t.x0 + k) / 4u;
    return W8(x[at], x[at + 1u]);
}

// Stores what belongs to row `m` of the weights (of MODE 1: to hidden value `m` of the workgroup's)
// and column `j`.
fn emit(t: Tile, m: u32, j: u32, value: f32, up: f32) {
    let o = t.o0 + m;
    if o >= p.n_out || j >= t.count { return; }
    let name = name_of(t, j);
    if GATED {
        var weight = 1.0;
        if MODE == 1u { weight = weights[name]; }
        out[name * p.out_width + o] = swiglu(value, up, p.limit, weight);
    } else {
        out[name * p.out_width + select(0u, p.lo, MODE == 0u) + o] = value;
    }
}
//!core

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var t = Tile(wg.x * select(BM, BM / 2u, GATED), 0u, 0u, wg.y * BN, 0u);
    if DENSE {
        t.count = min(BN, p.n - t.begin);
        t.x0 = ((p.lo + t.o0) / p.group_out) * p.n_in;
    } else {
        if wg.y >= tiles[0] { return; }
        let expert = tiles[1u + 3u * wg.y];
        if expert < p.lo || expert >= p.hi { return; }
        t.w0 = (expert - p.lo) * p.n_out;
        t.begin = tiles[2u + 3u * wg.y];
        t.count = tiles[3u + 3u * wg.y];
    }
    multiply(t, lane);
}
