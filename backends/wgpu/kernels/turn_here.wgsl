// `turn_a` of the channels of a row that the workgroup has made, WG_ROWS of them in `results`: 16 lanes
// for two channels each, 16 teams for the 34 sums of 32 channels.
@group(0) @binding(11) var<storage, read> turn_gates: array<f32>;
@group(0) @binding(12) var<storage, read> turn_w: array<u32>;
@group(0) @binding(13) var<storage, read_write> turn_streams: array<vec2<f32>>;
@group(0) @binding(14) var<storage, read_write> turn_sums: array<f32>;
const TURN_HC: u32 = 4u;
const TURN_GATES: u32 = 24u;
const TURN_SUMS: u32 = 34u;
// Rows are 17 long so that lanes lie in different banks.
var<workgroup> turn_parts: array<f32, 578>;

fn turn_product(g: u32, c: u32, pairs: u32, v: array<vec2<f32>, 4>) -> f32 {
    let at = g * TURN_HC * pairs + c;
    let a = unpack2x16float(turn_w[at]);
    let b = unpack2x16float(turn_w[at + pairs]);
    let d = unpack2x16float(turn_w[at + 2u * pairs]);
    let e = unpack2x16float(turn_w[at + 3u * pairs]);
    return dot(a, v[0]) + dot(b, v[1]) + dot(d, v[2]) + dot(e, v[3]);
}

fn turn_here(lane: u32, o0: u32, n_embd: u32) {
    let pairs = n_embd / 2u;
    let team = lane / 16u;
    let own = lane & 15u;
    let c = o0 / 2u + own;
    var next: array<vec2<f32>, 4>;
    if lane < 256u {
        let before = array<vec2<f32>, 4>(
            turn_streams[c], turn_streams[c + pairs], turn_streams[c + 2u * pairs], turn_streams[c + 3u * pairs]);
        let y = vec2<f32>(results[2u * own], results[2u * own + 1u]);
        var v: array<vec2<f32>, 4>;
        for (var k = 0u; k < TURN_HC; k++) {
            v[k] = turn_gates[4u + k] * y + turn_gates[8u + k] * before[0]
                + turn_gates[12u + k] * before[1] + turn_gates[16u + k] * before[2]
                + turn_gates[20u + k] * before[3];
        }
        // Team `t` has the products with rows `t` and `t + 16` of `fn`, of those that are products of two
        // streams the ten after the 24.
        turn_parts[team * 17u + own] = turn_product(team, c, pairs, v);
        var of_streams = array<f32, 10>(
            dot(v[0], v[0]), dot(v[1], v[0]), dot(v[1], v[1]), dot(v[2], v[0]), dot(v[2], v[1]),
            dot(v[2], v[2]), dot(v[3], v[0]), dot(v[3], v[1]), dot(v[3], v[2]), dot(v[3], v[3]));
        if team < 8u {
            turn_parts[(16u + team) * 17u + own] = turn_product(16u + team, c, pairs, v);
        } else {
            turn_parts[(16u + team) * 17u + own] = of_streams[team - 8u];
        }
        if team < 2u { turn_parts[(32u + team) * 17u + own] = of_streams[8u + team]; }
        next = v;
    }
    // Every team has read the streams.
    workgroupBarrier();
    if lane < 16u {
        for (var k = 0u; k < TURN_HC; k++) { turn_streams[c + k * pairs] = next[k]; }
    }
    if lane < TURN_SUMS {
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) { sum += turn_parts[lane * 17u + i]; }
        turn_sums[(o0 / 32u) * TURN_SUMS + lane] = sum;
    }
}
