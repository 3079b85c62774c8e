// What becomes of the products of a workgroup's rows. QUANTISED: of 32 outputs, 8-bit codes and
// their scale; with WEIGHTED, of the outputs times a norm's weight, beside their sum of squares.
var<workgroup> results: array<f32, ROWS * WG_ROWS>;

fn finish(lane: u32, o0: u32, n_out: u32) {
    workgroupBarrier();
    if !QUANTISED {
        for (var i = lane; i < ROWS * WG_ROWS; i += WG) {
            let r = p.row0 + i / WG_ROWS;
            let o = o0 + i % WG_ROWS;
            if o < n_out && r < p.n && !is_pad(r) { out[r * p.out_width + p.lo + o] = results[i]; }
        }
        return;
    }
    for (var i0 = 0u; i0 < ROWS * WG_ROWS; i0 += WG) {
        let i = i0 + lane;
        let r = p.row0 + i / WG_ROWS;
        let c = o0 + i % WG_ROWS;
        var value = 0.0;
        if i < ROWS * WG_ROWS { value = results[i]; }
        block_values[lane] = value * value;
        if WEIGHTED { value *= norm[c]; }
        workgroupBarrier();
        var squares = 0.0;
        if (lane & 31u) == 0u {
            for (var j = 0u; j < 32u; j++) { squares += block_values[lane + j]; }
        }
        workgroupBarrier();
        let scale = quantise_block(lane, value);
        if i < ROWS * WG_ROWS && r < p.n && !is_pad(r) {
            let at = r * p.out_width + c;
            out[at] = value;
            if (lane & 31u) == 0u {
                out_scales[at / 32u] = scale;
                if WEIGHTED { out_squares[at / 32u] = squares; }
            }
            if (lane & 3u) == 0u { out_codes[at / 4u] = packed_codes(lane); }
        }
        workgroupBarrier();
    }
}
