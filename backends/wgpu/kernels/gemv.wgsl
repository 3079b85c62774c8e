// out = W x for a few rows: a subgroup takes PER rows of W at a time, its lanes a unit each. Rows of
// W are `lo ..` of the whole; block `g` of `group_out` of them applies to channels `g * n_in ..` of x.
// x is floats, or 8-bit codes with a scale for 32. With a fixed subgroup size and whole turns of it
// STEPS is their number. NORMED: the products are multiplied by
// rsqrt(mean of the squares in `squares` + eps). INDEXED: results are the indexer's queries, heads of
// WG_ROWS channels. TURN: the row is a sublayer's result, and goes into the streams as well.
struct P { n: u32, row0: u32, n_in: u32, n_out: u32, lo: u32, group_out: u32, x_width: u32, out_width: u32, n_squares: u32, square_width: u32, eps: f32, w_qs: u32, w_ss: u32, half_dim: u32, table: u32, hadamard: f32 }
var<immediate> p: P;
//!include rows
//!include quantise_block
//!weight w 1
@group(0) @binding(3) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(4) var<storage, read> x_scales: array<f32>;
@group(0) @binding(5) var<storage, read> squares: array<f32>;
@group(0) @binding(6) var<storage, read> norm: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
@group(0) @binding(8) var<storage, read_write> out_codes: array<u32>;
@group(0) @binding(9) var<storage, read_write> out_scales: array<f32>;
@group(0) @binding(10) var<storage, read_write> out_squares: array<f32>;
//!include gemv_out
//!when INDEXED true index_query
//!when TURN true turn_here
var<workgroup> factors: array<f32, ROWS>;
//!include x_global
//!product w

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) sub_lane: u32,
    @builtin(subgroup_id) sub: u32,
    @builtin(num_subgroups) n_subs: u32,
    @builtin(subgroup_size) width: u32,
) {
    prepare(lane);
    let o0 = (wg.x + wg.y * 65535u) * WG_ROWS;
    if o0 >= p.n_out { return; }
    for (var base = sub * PER; base < WG_ROWS; base += n_subs * PER) {
        let first = o0 + base;
        if first >= p.n_out { break; }
        var sums: array<f32, ROWS * PER>;
        for (var i = 0u; i < ROWS * PER; i++) { sums[i] = 0.0; }
        var x_at: array<u32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let row = min(p.row0 + r, p.n - 1u);
            x_at[r] = (row * p.x_width + ((p.lo + first) / p.group_out) * p.n_in) / X_LEN;
        }
        // UNROLL turns at a time; of many rows all at once would be too long a program.
        let n_turns = select(0u, p.n_in / (w_UNIT * max(SUBGROUP, 1u)), STEPS > 0u);
        for (var turn = 0u; turn < n_turns; turn += max(UNROLL, 1u)) {
//!repeat UNROLL 1
            multiply_w(&sums, first, p.n_out, sub_lane + (turn + @I@u) * SUBGROUP, &x_at);
//!end
        }
        if STEPS == 0u {
            for (var u = sub_lane; u < p.n_in / w_UNIT; u += width) {
                multiply_w(&sums, first, p.n_out, u, &x_at);
            }
        }
        for (var i = 0u; i < PER; i++) {
            for (var r = 0u; r < ROWS; r++) {
                let total = subgroupAdd(sums[r * PER + i]);
                if sub_lane == 0u && base + i < WG_ROWS { results[r * WG_ROWS + base + i] = total; }
            }
        }
    }
    if NORMED {
        // The weights do not wait for this.
        workgroupBarrier();
        for (var r = sub; r < ROWS; r += n_subs) {
            var sum = 0.0;
            for (var i = sub_lane; i < p.n_squares; i += width) {
                sum += squares[(p.row0 + r) * p.n_squares + i];
            }
            let factor = 1.0 / sqrt(subgroupAdd(sum) / f32(p.square_width) + p.eps);
            if sub_lane == 0u { factors[r] = factor; }
        }
        workgroupBarrier();
        for (var i = lane; i < ROWS * WG_ROWS; i += WG) { results[i] *= factors[i / WG_ROWS]; }
    }
//!when INDEXED true index_turn
    finish(lane, o0, p.n_out);
//!when TURN true turn_now
}
