// In f16 with f32 sums, on cooperative matrices of SIZE by SIZE: eight subgroups of 32 lanes, four
// along the weights and two along x, each with 32 rows of weights and BN / 2 rows of x.
const BM: u32 = 128u;
//!include sync
// Rows begin an odd number of 16-byte pieces apart.
const STRIDE: u32 = 40u;
var<workgroup> halves: array<f16, (BM + BN) * STRIDE>;
var<workgroup> stage: array<f32, 8u * 256u>;

fn half(x: f32) -> f16 { return f16(clamp(x, -65504.0, 65504.0)); }

fn put(at: u32, w: W8) {
    for (var i = 0u; i < 4u; i++) {
        halves[at + i] = half(w.a[i]);
        halves[at + 4u + i] = half(w.b[i]);
    }
}

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
    begin_sync(lane);
    let sub = lane / 32u;
    let m0 = (sub & 3u) * 32u;
    let j0 = (sub / 4u) * (BN / 2u);
//!repeat M_TILES N_TILES
    var sum@I@ = Sum();
//!end
    for (var k = 0u; k < p.n_in; k += BK) {
        let z = sync();
        for (var u = lane; u < BM * 4u; u += WG) {
            put(z + (u / 4u) * STRIDE + (u & 3u) * 8u, load_weights(t, u / 4u, k + (u & 3u) * 8u));
        }
        for (var u = lane; u < BN * 4u; u += WG) {
            put(z + (BM + u / 4u) * STRIDE + (u & 3u) * 8u, load_x(t, u / 4u, k + (u & 3u) * 8u));
        }
        let y = sync();
        for (var kk = 0u; kk < BK; kk += SIZE) {
//!repeat M_TILES 1
            let left@I@ = coopLoadT<Left>(&halves[y + (m0 + @I@u * SIZE) * STRIDE + kk], STRIDE);
//!end
//!repeat N_TILES 1
            let right@I@ = coopLoad<Right>(&halves[y + (BM + j0 + @I@u * SIZE) * STRIDE + kk], STRIDE);
//!end
//!repeat M_TILES N_TILES
            sum@I@ = coopMultiplyAdd(left@A@, right@B@, sum@I@);
//!end
        }
    }
//!repeat 2 N_BLOCKS
    let before@I@ = sync();
@STORES@
    let after@I@ = sync();
    unload(t, lane, after@I@, m0 + @A@u * 16u, j0 + @B@u * 16u);
//!end
}
