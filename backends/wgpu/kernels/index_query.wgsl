// Queries of the indexer in `results`, a head of WG_ROWS channels for each row: rotation of the last
// `2 * half_dim`, then, when ROUNDED, Hadamard transform and rounding.
//!include rounding

fn turn_queries(lane: u32) {
    for (var i = lane; i < ROWS * p.half_dim; i += WG) {
        let r = i / p.half_dim;
        let pair = i % p.half_dim;
        if p.row0 + r < p.n {
            let at = r * WG_ROWS + WG_ROWS - 2u * (p.half_dim - pair);
            let angle = row_angle(p.row0 + r, p.table, p.half_dim, pair);
            let a = results[at];
            let b = results[at + 1u];
            results[at] = a * angle.x - b * angle.y;
            results[at + 1u] = a * angle.y + b * angle.x;
        }
    }
    workgroupBarrier();
    if !ROUNDED { return; }
    for (var len = 1u; len < WG_ROWS; len *= 2u) {
        for (var i = lane; i < ROWS * WG_ROWS / 2u; i += WG) {
            let at = (i / len) * 2u * len + i % len;
            let a = results[at];
            let b = results[at + len];
            results[at] = a + b;
            results[at + len] = a - b;
        }
        workgroupBarrier();
    }
    for (var i = lane; i < ROWS * WG_ROWS / 32u; i += WG) {
        let first = 32u * i;
        var amax = 0.0;
        for (var c = first; c < first + 32u; c++) { amax = max(amax, abs(results[c] * p.hadamard)); }
        let e = index_exponent(amax);
        for (var c = first; c < first + 32u; c++) {
            results[c] = round_e2m1(results[c] * p.hadamard * exp2i(-e)) * exp2i(e);
        }
    }
    workgroupBarrier();
}
