// The sums of a row over all parts: lanes take the 34 sums in seven turns of parts.
const N_HC: u32 = 4u;
const N_GATES: u32 = 24u;
const N_SUMS: u32 = 34u;
const N_TURNS: u32 = 7u;
var<workgroup> turns: array<f32, N_TURNS * N_SUMS>;
var<workgroup> mix: array<f32, N_SUMS>;

fn add_parts(r: u32, lane: u32) {
    if lane < N_TURNS * N_SUMS {
        let i = lane % N_SUMS;
        var sum = 0.0;
        for (var part = lane / N_SUMS; part < p.n_parts; part += N_TURNS) {
            sum += sums[(r * p.n_parts + part) * N_SUMS + i];
        }
        turns[lane] = sum;
    }
    workgroupBarrier();
    if lane < N_SUMS {
        var sum = 0.0;
        for (var turn = 0u; turn < N_TURNS; turn++) { sum += turns[lane + turn * N_SUMS]; }
        mix[lane] = sum;
    }
    workgroupBarrier();
}

fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }

// rsqrt(mean of the squares of all streams + eps).
fn streams_inverse() -> f32 {
    return 1.0 / sqrt((mix[24] + mix[26] + mix[29] + mix[33]) / f32(N_HC * p.n_embd) + p.rms_eps);
}
fn pre(j: u32, inverse: f32) -> f32 {
    return sigmoid(mix[j] * inverse * scale[0] + base[j]) + p.hc_eps;
}
