// 8-bit codes of blocks of 32 values, one value a lane: code = round(x * 127 / max |x|).
var<workgroup> block_values: array<f32, WG>;
var<workgroup> block_codes: array<u32, WG>;

// Every lane's value becomes part of the block at its multiple of 32. Returns the block's scale;
// `packed_codes(lane)` then gives four codes to each lane that is a multiple of 4.
fn quantise_block(lane: u32, x: f32) -> f32 {
    block_values[lane] = abs(x);
    workgroupBarrier();
    var top = 0.0;
    let first = lane & ~31u;
    for (var i = 0u; i < 32u; i++) { top = max(top, block_values[first + i]); }
    let inverse = select(127.0 / top, 0.0, top < 1e-30);
    block_codes[lane] = u32(i32(round(clamp(x * inverse, -127.0, 127.0)))) & 255u;
    workgroupBarrier();
    return select(top / 127.0, 0.0, top < 1e-30);
}
fn packed_codes(lane: u32) -> u32 {
    return block_codes[lane] | (block_codes[lane + 1u] << 8u)
        | (block_codes[lane + 2u] << 16u) | (block_codes[lane + 3u] << 24u);
}
