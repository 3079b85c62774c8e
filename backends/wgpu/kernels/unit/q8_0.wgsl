// A unit is 16 codes of one block.
const @W@_RUNS: u32 = 1u;
const @W@_UNIT: u32 = 16u;
const @W@_LOW: bool = false;
fn @W@_unit(row: u32, u: u32) -> Unit {
    let d = unpack2x16float(@W@_s[row * p.@W@_ss + u / 4u])[(u / 2u) & 1u];
    let q = @W@_q4[row * (p.@W@_qs / 4u) + u];
    return Unit(q, q, q, q, vec4<f32>(d), vec4<f32>(0.0), vec4<u32>(u));
}
