// A unit is 16 bytes of codes: four runs of 16 elements, 32 apart, each with its scale and min.
const @W@_RUNS: u32 = 4u;
const @W@_UNIT: u32 = 64u;
const @W@_LOW: bool = true;
fn @W@_unit(row: u32, u: u32) -> Unit {
    let block = u / 4u;
    let n = (u / 2u) & 1u;
    let h = u & 1u;
    let q = @W@_q4[row * (p.@W@_qs / 4u) + u];
    let s = row * p.@W@_ss + block * 5u;
    let d = unpack2x16float(@W@_s[s + 4u]);
    let first = @W@_s[s + 2u * n] >> (8u * h);
    let second = @W@_s[s + 2u * n + 1u] >> (8u * h);
    let sub = vec4<u32>(first, first >> 16u, second, second >> 16u);
    let m = vec4<u32>(0x03030303u);
    return Unit(
        q & m, (q >> vec4<u32>(2u)) & m, (q >> vec4<u32>(4u)) & m, (q >> vec4<u32>(6u)) & m,
        d.x * vec4<f32>(sub & vec4<u32>(15u)),
        d.y * vec4<f32>((sub >> vec4<u32>(4u)) & vec4<u32>(15u)),
        vec4<u32>(block * 16u + n * 8u + h) + vec4<u32>(0u, 2u, 4u, 6u));
}
