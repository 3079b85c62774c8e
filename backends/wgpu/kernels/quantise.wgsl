// 8-bit codes and scales of the rows of x, in blocks of 32. The width is a multiple of 32.
struct P { n: u32, width: u32 }
var<immediate> p: P;
const WG: u32 = 128u;
//!include rows
//!include quantise_block
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    let c = wg.x * WG + lane;
    var value = 0.0;
    if c < p.width { value = x[r * p.width + c]; }
    let scale = quantise_block(lane, value);
    if c < p.width {
        let at = r * p.width + c;
        if (lane & 31u) == 0u { scales[at / 32u] = scale; }
        if (lane & 3u) == 0u { codes[at / 4u] = packed_codes(lane); }
    }
}
