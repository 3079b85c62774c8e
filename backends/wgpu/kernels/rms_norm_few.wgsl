// x = weight * x * rsqrt(mean(x²) + eps), in place, and as 8-bit codes: one workgroup for a row. The
// width is a multiple of 32.
struct P { n: u32, width: u32, eps: f32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include reduce
//!include quantise_block
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    let x0 = r * p.width;
    var sum = 0.0;
    for (var c = lane; c < p.width; c += WG) { sum += x[x0 + c] * x[x0 + c]; }
    let inv = 1.0 / sqrt(sum_all(lane, sum) / f32(p.width) + p.eps);
    for (var c0 = 0u; c0 < p.width; c0 += WG) {
        let c = c0 + lane;
        var value = 0.0;
        if c < p.width { value = weight[c] * (x[x0 + c] * inv); }
        let scale = quantise_block(lane, value);
        if c < p.width {
            x[x0 + c] = value;
            if (lane & 31u) == 0u { scales[(x0 + c) / 32u] = scale; }
            if (lane & 3u) == 0u { codes[(x0 + c) / 4u] = packed_codes(lane); }
        }
        workgroupBarrier();
    }
}
