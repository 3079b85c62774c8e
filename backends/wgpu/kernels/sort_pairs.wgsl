// Pairs of row and expert in the order of their experts, and tiles of up to TILE pairs of one
// expert: one workgroup. `tiles` is their number, then (expert, first place in `order`, pairs).
struct P { n: u32, k: u32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
@group(0) @binding(1) var<storage, read> experts: array<u32>;
@group(0) @binding(2) var<storage, read_write> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> tiles: array<u32>;

var<workgroup> counts: array<atomic<u32>, N_EXPERTS>;
var<workgroup> begins: array<atomic<u32>, N_EXPERTS>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < N_EXPERTS; e += WG) { atomicStore(&counts[e], 0u); }
    workgroupBarrier();
    for (var i = lane; i < p.n * p.k; i += WG) {
        if !is_pad(i / p.k) { atomicAdd(&counts[experts[i]], 1u); }
    }
    workgroupBarrier();
    if lane == 0u {
        var at = 0u;
        var n_tiles = 0u;
        for (var e = 0u; e < N_EXPERTS; e++) {
            let count = atomicLoad(&counts[e]);
            atomicStore(&begins[e], at);
            for (var done = 0u; done < count; done += TILE) {
                tiles[1u + 3u * n_tiles] = e;
                tiles[2u + 3u * n_tiles] = at + done;
                tiles[3u + 3u * n_tiles] = min(TILE, count - done);
                n_tiles += 1u;
            }
            at += count;
        }
        tiles[0] = n_tiles;
    }
    workgroupBarrier();
    for (var i = lane; i < p.n * p.k; i += WG) {
        if !is_pad(i / p.k) { order[atomicAdd(&begins[experts[i]], 1u)] = i; }
    }
}
