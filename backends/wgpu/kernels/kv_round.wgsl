// Cache rounding of attention rows, in place: a lane for each block of 64 channels of the first
// `plain` ones, and for each 64 of the rotated ones.
struct P { n: u32, width: u32, plain: u32 }
var<immediate> p: P;
//!include rows
//!include bf16
//!include rounding
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = id.y;
    let n_blocks = (p.plain + 63u) / 64u;
    let x0 = r * p.width;
    if is_pad(r) { return; }
    if id.x < n_blocks {
        let begin = x0 + id.x * 64u;
        let end = x0 + min(id.x * 64u + 64u, p.plain);
        var amax = 0.0;
        for (var c = begin; c < end; c++) { amax = max(amax, abs(x[c])); }
        let e = kv_exponent(amax);
        let inv = exp2i(-e);
        let scale = exp2i(e);
        for (var c = begin; c < end; c++) { x[c] = round_e4m3(x[c] * inv) * scale; }
    } else {
        let begin = x0 + p.plain + (id.x - n_blocks) * 64u;
        let end = min(begin + 64u, x0 + p.width);
        for (var c = begin; c < end; c++) { x[c] = bitcast<f32>(bf16_bits(x[c]) << 16u); }
    }
}
