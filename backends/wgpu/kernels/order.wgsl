// A word that orders as the float does.
fn order(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return bits ^ select(0x80000000u, 0xffffffffu, (bits >> 31u) != 0u);
}
