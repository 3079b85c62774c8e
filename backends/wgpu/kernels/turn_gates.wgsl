// The gates of a hyper-connection from the partial sums: a workgroup for a row. The four by four
// matrix of Sinkhorn's steps is one lane's, a vector for each source.
struct P { n: u32, n_embd: u32, n_parts: u32, rms_eps: f32, hc_eps: f32, n_sinkhorn: u32 }
var<immediate> p: P;
//!include rows
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read> base: array<f32>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> gates: array<f32>;
//!include turn_sums

fn logits(j: u32, inverse: f32) -> vec4<f32> {
    let at = 2u * N_HC + j * N_HC;
    return vec4<f32>(mix[at], mix[at + 1u], mix[at + 2u], mix[at + 3u]) * (inverse * scale[2])
        + vec4<f32>(base[at], base[at + 1u], base[at + 2u], base[at + 3u]);
}
fn soft(x: vec4<f32>) -> vec4<f32> {
    let e = exp(x - vec4<f32>(max(max(x.x, x.y), max(x.z, x.w))));
    return e / (e.x + e.y + e.z + e.w) + vec4<f32>(p.hc_eps);
}
fn by_sum(x: vec4<f32>) -> vec4<f32> { return x / (x.x + x.y + x.z + x.w + p.hc_eps); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let r = wg.x;
    if is_pad(r) { return; }
    add_parts(r, lane);
    let inverse = streams_inverse();
    let g0 = r * N_GATES;
    if lane < N_HC {
        gates[g0 + lane] = pre(lane, inverse);
        gates[g0 + N_HC + lane] =
            2.0 * sigmoid(mix[N_HC + lane] * inverse * scale[1] + base[N_HC + lane]);
    }
    if lane == 0u {
        var a = soft(logits(0u, inverse));
        var b = soft(logits(1u, inverse));
        var c = soft(logits(2u, inverse));
        var d = soft(logits(3u, inverse));
        for (var step = 0u; step < p.n_sinkhorn; step++) {
            if step > 0u {
                a = by_sum(a);
                b = by_sum(b);
                c = by_sum(c);
                d = by_sum(d);
            }
            let columns = a + b + c + d + vec4<f32>(p.hc_eps);
            a /= columns;
            b /= columns;
            c /= columns;
            d /= columns;
        }
        for (var k = 0u; k < N_HC; k++) {
            gates[g0 + 8u + k] = a[k];
            gates[g0 + 12u + k] = b[k];
            gates[g0 + 16u + k] = c[k];
            gates[g0 + 20u + k] = d[k];
        }
    }
}
