// The nearest bf16, ties to even, in the low half of a word.
fn bf16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
