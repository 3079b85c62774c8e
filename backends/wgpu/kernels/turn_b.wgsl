// The input of a sublayer from the partial sums: x = norm(sum_j pre[j] streams[j]), in f32 and, when
// QUANTISED, as 8-bit codes. A workgroup takes 256 channels of a row. The mean square of the weighted sum comes
// from the products of the streams.
struct P { n: u32, n_embd: u32, n_parts: u32, rms_eps: f32, hc_eps: f32 }
var<immediate> p: P;
const WG: u32 = 256u;
//!include rows
//!include quantise_block
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read> base: array<f32>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read> norm: array<f32>;
@group(0) @binding(5) var<storage, read> streams: array<f32>;
@group(0) @binding(6) var<storage, read_write> x: array<f32>;
@group(0) @binding(7) var<storage, read_write> codes: array<u32>;
@group(0) @binding(8) var<storage, read_write> scales: array<f32>;
//!include turn_sums

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.y;
    if is_pad(r) { return; }
    add_parts(r, lane);
    let inverse = streams_inverse();
    let w = vec4<f32>(pre(0u, inverse), pre(1u, inverse), pre(2u, inverse), pre(3u, inverse));
    let square = w.x * w.x * mix[24]
        + w.y * (2.0 * w.x * mix[25] + w.y * mix[26])
        + w.z * (2.0 * (w.x * mix[27] + w.y * mix[28]) + w.z * mix[29])
        + w.w * (2.0 * (w.x * mix[30] + w.y * mix[31] + w.z * mix[32]) + w.w * mix[33]);
    let factor = 1.0 / sqrt(max(square, 0.0) / f32(p.n_embd) + p.rms_eps);
    let c = wg.x * WG + lane;
    var value = 0.0;
    if c < p.n_embd {
        let s0 = r * N_HC * p.n_embd + c;
        let sum = w.x * streams[s0] + w.y * streams[s0 + p.n_embd]
            + w.z * streams[s0 + 2u * p.n_embd] + w.w * streams[s0 + 3u * p.n_embd];
        value = norm[c] * (sum * factor);
    }
    let at = r * p.n_embd + c;
    if c < p.n_embd { x[at] = value; }
    if !QUANTISED { return; }
    let block_scale = quantise_block(lane, value);
    if c < p.n_embd {
        if (lane & 31u) == 0u { scales[at / 32u] = block_scale; }
        if (lane & 3u) == 0u { codes[at / 4u] = packed_codes(lane); }
    }
}
