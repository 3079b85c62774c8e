// What a workgroup of `gemm` and `gemm_half` takes, and where its products go.
// MODE 0: out = A x; block `g` of `group_out` rows of A applies to channels `g * n_in ..` of x.
// MODE 1: hidden = weight * silu(min(g, limit)) * clamp(u, ±limit) with A the gate and B the up
// matrices of a tile's expert; in 16 rows of weights eight are of each.
// MODE 3: the same of the shared expert, whose weight is 1, for all rows.
// MODE 2: out of a pair of row and expert = A hidden, with A the down matrix of a tile's expert.
// Tiles of pairs come from `sort_pairs`: number, then (expert, first place in `order`, pairs).
struct P { n: u32, n_in: u32, n_out: u32, lo: u32, hi: u32, group_out: u32, x_width: u32, out_width: u32, k: u32, limit: f32, a_qs: u32, a_ss: u32, b_qs: u32, b_ss: u32 }
var<immediate> p: P;
//!include rows
//!include swiglu
@group(0) @binding(6) var<storage, read> order: array<u32>;
@group(0) @binding(7) var<storage, read> tiles: array<u32>;
@group(0) @binding(8) var<storage, read> weights: array<f32>;
@group(0) @binding(9) var<storage, read_write> out: array<f32>;

const GATED: bool = MODE == 1u || MODE == 3u;
const DENSE: bool = MODE == 0u || MODE == 3u;

// `count` columns; 0 when the workgroup has nothing to do.
struct Tile { o0: u32, w0: u32, x0: u32, begin: u32, count: u32 }

fn tile_of(wg: vec3<u32>) -> Tile {
    var t = Tile(wg.x * select(BM, BM / 2u, GATED), 0u, 0u, wg.y * BN, 0u);
    if DENSE {
        t.count = min(BN, p.n - t.begin);
        t.x0 = ((p.lo + t.o0) / p.group_out) * p.n_in;
    } else if wg.y < tiles[0] {
        let expert = tiles[1u + 3u * wg.y];
        if expert >= p.lo && expert < p.hi {
            t.w0 = (expert - p.lo) * p.n_out;
            t.begin = tiles[2u + 3u * wg.y];
            t.count = tiles[3u + 3u * wg.y];
        }
    }
    return t;
}

// The row of x, or the pair, of a column of the tile.
fn name_of(t: Tile, j: u32) -> u32 {
    if DENSE { return t.begin + j; }
    return order[t.begin + j];
}

// The row of a matrix of weights that is row `m` of the tile's.
fn weight_row(t: Tile, m: u32) -> u32 {
    if GATED { return t.w0 + min(t.o0 + (m / 16u) * 8u + (m & 7u), p.n_out - 1u); }
    return t.w0 + min(t.o0 + m, p.n_out - 1u);
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
