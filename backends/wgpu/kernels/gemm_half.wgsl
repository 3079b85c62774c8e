// `gemm` on cooperative matrices of 16 by 16, with x in f16: four subgroups of 32 lanes, two along
// the 128 rows of weights and two along x. The codes of the next BK columns are on their way while
// the present ones are multiplied, and become f16 in workgroup memory when those are done. DIRECT:
// every tile is whole, and its products go to where they belong without the stage.
const WG: u32 = 128u;
const BM: u32 = 128u;
// Vectors of a row in workgroup memory; rows begin 16 bytes apart from a multiple of 128.
const STRIDE: u32 = BK / 4u + 2u;
//!include gemm_tile
//!include sync
@group(0) @binding(5) var<storage, read> x: array<vec4<f16>>;
var<workgroup> left: array<vec4<f16>, BM * STRIDE>;
var<workgroup> right: array<vec4<f16>, BN * STRIDE>;
var<workgroup> stage: array<f32, 4u * 256u>;
struct Raw { q: vec4<u32>, s: vec4<u32> }
//!half a 1
//!half b 3
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

const W_UNITS: u32 = BK / UNIT;
const X_PIECES: u32 = BK / 4u;

fn fetch(t: Tile, i: u32, k: u32) -> Raw {
    let m = i / W_UNITS;
    let row = weight_row(t, m);
    let u = k / UNIT + i % W_UNITS;
    if GATED && (m & 8u) != 0u { return b_raw(row, u); }
    return a_raw(row, u);
}
fn keep(z: u32, i: u32, raw: Raw) { put(z + (i / W_UNITS) * STRIDE + (i % W_UNITS) * (UNIT / 4u), raw); }

// Where the row of x begins that piece `i` of the tile is of.
fn x_row(t: Tile, i: u32) -> u32 {
    var row = name_of(t, min(i / X_PIECES, t.count - 1u));
    if MODE == 1u { row /= p.k; }
    return (row * p.x_width + t.x0) / 4u;
}
fn x_place(k: u32, i: u32) -> u32 { return place(k, (i % X_PIECES) * 4u) / 4u; }

// The tiles of a subgroup's 16 rows of weights and 16 rows of x lie in its part of the stage.
fn unload(t: Tile, lane: u32, z: u32, m0: u32, j0: u32) {
    let own = z + (lane / 32u) * 256u;
    if GATED {
        for (var i = lane & 31u; i < 128u; i += 32u) {
            let at = own + (i / 8u) * 16u + (i & 7u);
            emit(t, m0 / 2u + (i & 7u), j0 + i / 8u, stage[at], stage[at + 8u]);
        }
    } else {
        for (var i = lane & 31u; i < 256u; i += 32u) {
            emit(t, m0 + (i & 15u), j0 + i / 16u, stage[own + i], 0.0);
        }
    }
}

fn multiply(t: Tile, lane: u32) {
    prepare(lane);
    begin_sync(lane);
    let sub = lane / 32u;
    let m0 = (sub & 1u) * 64u;
    let j0 = (sub / 2u) * (BN / 2u);
//!repeat 4 N_TILES
    var sum@I@ = Sum();
//!end
//!repeat W_EACH 1
    var raw@I@ = fetch(t, lane + @I@u * WG, 0u);
//!end
//!repeat X_EACH 1
    let row@I@ = x_row(t, lane + @I@u * WG);
    var x@I@ = x[row@I@ + x_place(0u, lane + @I@u * WG)];
//!end
    for (var k = 0u; k < p.n_in; k += BK) {
        let z = sync();
//!repeat W_EACH 1
        keep(z, lane + @I@u * WG, raw@I@);
//!end
//!repeat X_EACH 1
        right[z + ((lane + @I@u * WG) / X_PIECES) * STRIDE + (lane + @I@u * WG) % X_PIECES] = x@I@;
//!end
        let y = sync();
        // The last turn loads once more what it has.
        let next = select(k + BK, k, k + BK >= p.n_in);
//!repeat W_EACH 1
        raw@I@ = fetch(t, lane + @I@u * WG, next);
//!end
//!repeat X_EACH 1
        x@I@ = x[row@I@ + x_place(next, lane + @I@u * WG)];
//!end
        for (var kk = 0u; kk < BK / 4u; kk += 4u) {
//!repeat 4 1
            let left@I@ = coopLoadT<Left>(&left[y + (m0 + @I@u * 16u) * STRIDE + kk], STRIDE);
//!end
//!repeat N_TILES 1
            let right@I@ = coopLoad<Right>(&right[y + (j0 + @I@u * 16u) * STRIDE + kk], STRIDE);
//!end
//!repeat 4 N_TILES
            sum@I@ = coopMultiplyAdd(left@A@, right@B@, sum@I@);
//!end
        }
    }
    if DIRECT {
        // naga emits what a store reads only with a statement of its own.
        let stride = p.out_width;
        let at = (t.begin + j0) * stride + p.lo + t.o0 + m0;
//!repeat 4 N_TILES
        let value@I@ = sum@I@;
        let at@I@ = at + @B@u * 16u * stride + @A@u * 16u;
        coopStore(value@I@, &out[at@I@], stride);
//!end
    } else {
//!repeat 4 N_TILES
        let before@I@ = sync();
        coopStore(sum@I@, &stage[before@I@ + sub * 256u], 16u);
        let after@I@ = sync();
        unload(t, lane, after@I@, m0 + @A@u * 16u, j0 + @B@u * 16u);
//!end
    }
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile_of(wg);
    if t.count == 0u { return; }
    multiply(t, lane);
}
